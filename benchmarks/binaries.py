"""The suite's own tools: in C, compiled when first needed, or in Python where there is no compiler."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from attrs import frozen

__all__ = ["REPOSITORY", "Tools", "build_tools", "cache_dir", "python_tools"]

HERE = Path(__file__).parent
REPOSITORY = HERE.parent
SOURCES = HERE / "tools"
COMPILE_SECONDS = 60


@frozen
class Tools:
    """The commands of the fake upstream and the load generator, and a description of both."""

    upstream: tuple[str, ...]
    tls_upstream: tuple[str, ...]
    load: tuple[str, ...]
    description: str


def cache_dir() -> Path:
    """Return the folder of compiled tools and installed peers: ``CGW_BENCH_CACHE``, or ``~/.cache/cgw-bench``."""
    named = os.environ.get("CGW_BENCH_CACHE")
    if named:
        return Path(named).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cgw-bench"


def python_tools() -> Tools:
    """Return the tools in Python: ten times slower, for machines without a compiler and for tests."""
    upstream = (sys.executable, "-m", "benchmarks.tools.fake_upstream")
    return Tools(upstream, upstream, (sys.executable, "-m", "benchmarks.tools.load_generator"), "Python")


def build_tools(choice: Literal["auto", "c", "python"] = "auto") -> Tools:
    """Return the tools in C, compiled if their sources have changed, or in Python without a compiler or when asked for.

    Raises :exc:`RuntimeError` when C is asked for and cannot be compiled.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if choice == "python" or (choice == "auto" and compiler is None):
        return python_tools()
    if compiler is None:
        raise RuntimeError("no C compiler (cc) was found; install one, or use --tools python")
    into = cache_dir() / f"tools-{_digest()}"
    load, upstream, plain = into / "load", into / "upstream-tls", into / "upstream"
    has_tls = upstream.exists() or _compile(
        compiler, "fake_upstream.c", upstream, ["-DWITH_TLS"], ["-lssl", "-lcrypto"]
    )
    for source, binary in (("load_generator.c", load), ("fake_upstream.c", plain)):
        if not binary.exists() and not _compile(compiler, source, binary):
            if choice == "auto":
                return python_tools()
            raise RuntimeError(f"{compiler} cannot compile benchmarks/tools/{source}; --tools python needs no compiler")
    fallback = python_tools().tls_upstream
    return Tools(
        (str(plain),),
        (str(upstream),) if has_tls else fallback,
        (str(load),),
        "C" if has_tls else "C, the TLS upstream in Python (no OpenSSL headers)",
    )


def _digest() -> str:
    digest = hashlib.sha256()
    for name in ("wire.h", "http2.h", "requests.h", "fake_upstream.c", "load_generator.c"):
        digest.update((SOURCES / name).read_bytes())
    return digest.hexdigest()[:16]


def _compile(
    compiler: str, source: str, binary: Path, flags: Sequence[str] = (), libraries: Sequence[str] = ()
) -> bool:
    binary.parent.mkdir(parents=True, exist_ok=True)
    # Compiled under another name and renamed: runs at the same time never execute a half-written file.
    part = binary.with_suffix(f".{os.getpid()}")
    command = [compiler, "-O2", *flags, "-o", str(part), str(SOURCES / source), *libraries]
    try:
        done = subprocess.run(command, capture_output=True, timeout=COMPILE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if done.returncode == 0:
        part.replace(binary)
    return done.returncode == 0
