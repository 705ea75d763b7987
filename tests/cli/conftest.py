"""The tests of the command line share a way to run it, in a process with an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cgw

ROOT = Path(cgw.__file__).parent.parent
COMMAND = (sys.executable, "-m", "cgw")
TIMEOUT_SECONDS = 30

Completed = subprocess.CompletedProcess[str]
RunCgw = Callable[..., Completed]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a fresh installation, without any variable of the developer's."""
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


@pytest.fixture
def run_cgw(environ: dict[str, str]) -> RunCgw:
    """``run_cgw(*arguments, **variables)`` runs ``cgw`` to its end, with ``variables`` in its environment."""

    def run(*arguments: str, **variables: str) -> Completed:
        return subprocess.run(
            [*COMMAND, *arguments],
            env=environ | variables,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    return run
