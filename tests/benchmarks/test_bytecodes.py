"""Counts of bytecodes: their sums, and the command that prints them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.bytecodes.measure import FIRST_VERSION, Counts, Row
from tests.benchmarks.test_runs import run_suite

ROWS = [
    Row("cgw/a.py", "first", 3, 10.0, 1.0),
    Row("cgw/b.py", "second", 5, 25.0, 2.0),
    Row("cgw/a.py", "Third.method", 9, 20.0, 0.5),
]


def test_counts_are_summed_and_sorted() -> None:
    """By function or by file, those with the most bytecodes come first."""
    counts = Counts(7, ROWS)

    assert (counts.bytecodes, counts.frames) == (55.0, 3.5)
    assert [row.function for row in counts.group("function")] == ["second", "Third.method", "first"]
    assert counts.group("file") == [Row("cgw/a.py", "", 0, 30.0, 1.5), Row("cgw/b.py", "", 0, 25.0, 2.0)]


def test_the_command_prints_counts(tmp_path: Path) -> None:
    """A gateway is counted, and the functions of its exchanges are listed; an older Python is told to be one."""
    done = run_suite("bytecodes", "--top", "400", cache=tmp_path)

    if sys.version_info < FIRST_VERSION:
        assert done.returncode == 1
        assert "3.12" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    total, *rows = done.stdout.splitlines()
    bytecodes, frames = (float(total.split()[index]) for index in (0, 3))
    listed = [(float(row.split()[0]), float(row.split()[1]), row.split()[2]) for row in rows]
    assert bytecodes * 0.9 <= sum(row[0] for row in listed) <= bytecodes + len(rows)
    assert sum(row[1] for row in listed) <= frames + len(rows)
    assert [row[0] for row in listed] == sorted((row[0] for row in listed), reverse=True)
    # Every exchange has one journal, so exactly this many frames.
    assert next(row[1] for row in listed if "journal.py" in row[2]) == pytest.approx(1.0, abs=0.05)
