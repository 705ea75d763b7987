"""Write locks anew, with the newest versions that their inputs allow: ``python -m compat.lock [NAME …]``.

The inputs are ``locks/<name>.in`` for PyPI and ``locks/<name>/package.json`` for npm. The Python versions that a lock
must suit begin with the oldest that cgw supports.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from compat.install import LOCKS

LOCK_SECONDS = 600
_UV = ("pip", "compile", "--quiet", "--upgrade", "--universal", "--python-version", "3.11")
_UV_OUTPUT = ("--no-annotate", "--no-header", "--no-emit-index-url", "--no-emit-find-links", "--output-file")
# A lock must not say where packages are from: that is each machine's own business.
_NPM = (
    "install",
    "--package-lock-only",
    "--omit-lockfile-registry-resolved",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
)


def list_locks() -> dict[str, tuple[list[str], Path]]:
    """Return the command that writes each lock, and the folder to run it in."""
    uv = str(Path(sys.executable).with_name("uv"))
    commands: dict[str, tuple[list[str], Path]] = {}
    for source in sorted(LOCKS.glob("*.in")):
        commands[source.stem] = ([uv, *_UV, *_UV_OUTPUT, f"{source.stem}.txt", source.name], LOCKS)
    for source in sorted(LOCKS.glob("*/package.json")):
        commands[source.parent.name] = ([shutil.which("npm") or "npm", *_NPM], source.parent)
    return commands


def main(names: list[str]) -> int:
    """Write the locks that are named, or all. Returns the exit status."""
    commands = list_locks()
    unknown = sorted(set(names) - commands.keys())
    if unknown:
        print(f"no such lock: {', '.join(unknown)}; there are {', '.join(commands)}", file=sys.stderr)
        return 2
    for name in names or commands:
        command, folder = commands[name]
        subprocess.run(command, cwd=folder, check=True, timeout=LOCK_SECONDS)
        print(f"locked {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
