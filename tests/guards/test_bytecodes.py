"""The bytecodes and frames of one exchange, in a gateway as it is run. A change that adds more than 3 % fails here.

Seventy per cent of an exchange's CPU time is the interpreter's, and it has no hot spot: so it is the sum that is
bounded. ``python -m benchmarks bytecodes`` prints where they are. A change that lowers a count lowers its bound, too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from attrs import frozen

from benchmarks.binaries import python_tools
from benchmarks.bytecodes.measure import FIRST_VERSION, count_bytecodes
from benchmarks.machine import pick_cores

ATTEMPTS = 3
"""Timers and waits for the disk add to the counts on a busy machine, and nothing takes from them: the lowest counts."""

OTHER_VERSIONS = 1.2
"""The factor for versions of Python other than 3.13: each compiles to other bytecodes."""


@frozen
class Bound:
    """The most that one exchange may take, in Python 3.13."""

    bytecodes: float
    frames: float


BOUNDS = {"not streaming": Bound(8_000, 330), "streaming": Bound(14_100, 520)}
"""3 % above what was measured; a stream has 20 events."""


@pytest.mark.skipif(sys.version_info < FIRST_VERSION, reason="sys.monitoring, which counts, came with Python 3.12")
@pytest.mark.parametrize("kind", BOUNDS)
def test_bytecodes_of_an_exchange(tmp_path: Path, kind: str) -> None:
    """Neither bytecodes nor frames are more than when the bound was set."""
    bound, factor = BOUNDS[kind], 1.0 if sys.version_info[:2] == (3, 13) else OTHER_VERSIONS
    bytecodes, frames = [], []
    for attempt in range(ATTEMPTS):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        counts = count_bytecodes(python_tools(), pick_cores(), folder, is_stream=kind == "streaming")
        bytecodes.append(counts.bytecodes)
        frames.append(counts.frames)
        if counts.bytecodes <= bound.bytecodes * factor and counts.frames <= bound.frames * factor:
            return
    pytest.fail(f"{min(bytecodes):.0f} bytecodes in {min(frames):.0f} frames: {bound} × {factor:g} is allowed")
