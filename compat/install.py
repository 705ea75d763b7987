"""Installing clients into a scratch folder, through the registries' ordinary clients."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from compat.registry import Client

LOCKS = Path(__file__).with_name("locks")
SCRIPTS = Path(__file__).with_name("clients")
INSTALL_SECONDS = 900


class NotInstalled(Exception):
    """A client that cannot be had; the text says why."""


def find_version(client: Client) -> str:
    """Return the locked version of the client's own package."""
    if client.registry == "npm":
        lock = json.loads((LOCKS / client.lock / "package-lock.json").read_text("utf-8"))
        return str(lock["packages"][f"node_modules/{client.package}"]["version"])
    pinned = (LOCKS / f"{client.lock}.txt").read_text("utf-8")
    match = re.search(rf"^{re.escape(client.package)}==(\S+)", pinned, re.MULTILINE)
    if match is None:
        raise ValueError(f"locks/{client.lock}.txt has no line {client.package}==VERSION")
    return match[1]


def install(client: Client, folder: Path) -> list[str]:
    """Install ``client`` below ``folder`` unless it is there; return the command that runs its script.

    Clients with the same lock share an installation. Raises :exc:`NotInstalled`.
    """
    home = folder / client.lock
    marker = home / ".installed"
    is_python = client.registry == "PyPI"
    digest = _digest([LOCKS / f"{client.lock}.txt"] if is_python else sorted((LOCKS / client.lock).iterdir()))
    if not marker.exists() or marker.read_text("utf-8") != digest:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        (_install_pip if is_python else _install_npm)(client, home)
        marker.write_text(digest, "utf-8")
    script = SCRIPTS / client.script
    if is_python:
        return [str(home / "bin" / "python"), str(script)]
    if script.suffix == ".py":  # a program, which the script starts
        return [sys.executable, str(script), str(home / "node_modules" / ".bin")]
    # Node looks for packages beside the script.
    for source in script.parent.glob("*.mjs"):
        shutil.copy(source, home / source.name)
    return [_find("node"), str(home / script.name)]


def _digest(paths: list[Path]) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def _install_pip(client: Client, home: Path) -> None:
    python = sys.executable if client.python is None else _find_python(client.python)
    uv = str(Path(sys.executable).with_name("uv"))
    _run([uv, "venv", "--quiet", "--allow-existing", "--python", python, str(home)], home)
    lock = str(LOCKS / f"{client.lock}.txt")
    _run([uv, "pip", "install", "--quiet", "--python", str(home / "bin" / "python"), "--requirement", lock], home)


def _install_npm(client: Client, home: Path) -> None:
    for source in (LOCKS / client.lock).iterdir():
        shutil.copy(source, home / source.name)
    # Without packages' own scripts: those that fetch something could not, and only one client needs its own.
    _run([_find("npm"), "ci", "--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts"], home)
    if client.post_install is not None:
        _run([_find("node"), client.post_install], home)


def _find_python(newest: str) -> str:
    """Return an interpreter of at most that version."""
    major, minor = newest.split(".")
    if sys.version_info[:2] <= (int(major), int(minor)):
        return sys.executable
    finder = Path(__file__).parents[1] / ".ci" / "find-python"
    for version in range(int(minor), 10, -1):
        done = subprocess.run(
            [str(finder), f"{major}.{version}"], capture_output=True, text=True, timeout=60, check=False
        )
        if not done.returncode:
            return done.stdout.strip()
    raise NotInstalled(f"it needs Python {newest} or older, which is not installed")


def _find(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise NotInstalled(f"{program} is not installed")
    return path


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{Path(command[0]).name}: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it failed"]
        raise NotInstalled(f"{Path(command[0]).name}: {lines[-1][:200]}")
