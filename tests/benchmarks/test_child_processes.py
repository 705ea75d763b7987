"""Child processes: they end with their descendants, and every wait has a deadline."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.machine import process_tree, read_cpu, read_memory
from benchmarks.processes import Child, ChildError, free_port, wait_until_answers
from benchmarks.subjects.known import known_subjects, parse_subject

STUBBORN = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(child.pid, flush=True)
signal.pause()
"""
CORES = sorted(os.sched_getaffinity(0))[:1]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_ends_with_its_descendants(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ignores SIGTERM is ended, and so is its child in a session of its own."""
    monkeypatch.setattr("benchmarks.processes.TERM_GRACE_SECONDS", 0.05)
    with Child("stubborn", [sys.executable, "-c", STUBBORN], cores=CORES, has_pipes=True) as child:
        descendant = int(child.read_line(time.monotonic() + 20))
        assert process_tree(child.pid) == [child.pid, descendant]
        assert os.sched_getaffinity(child.pid) == set(CORES)

    assert not child.is_alive
    assert not is_running(descendant)


def test_a_silent_child_is_waited_for_until_the_deadline() -> None:
    """A child that prints nothing, or ends, raises an error that names it."""
    silent = Child("silent", ["sleep", "1000"], cores=CORES, has_pipes=True)
    with silent, pytest.raises(ChildError, match="silent printed nothing before the deadline"):
        silent.read_line(time.monotonic() + 0.05)
    brief = Child("brief", ["true"], cores=CORES, has_pipes=True)
    with brief, pytest.raises(ChildError, match="brief ended"):
        brief.read_line(time.monotonic() + 20)


def test_a_subject_that_cannot_start_is_reported_with_its_last_output(tmp_path: Path) -> None:
    """The error contains the last lines that a subject printed before it ended."""
    command = [sys.executable, "-c", "import sys; sys.exit('no such option: --port')"]
    child = Child("mine", command, cores=CORES, log=tmp_path / "log")
    with child, pytest.raises(ChildError, match="mine ended with status 1: no such option: --port"):
        wait_until_answers(child, free_port(), 20)


def test_a_program_that_is_missing_is_an_error() -> None:
    """A command that cannot be run raises ``ChildError``, not the operating system's error."""
    with pytest.raises(ChildError), Child("missing", ["/no/such/program"], cores=CORES, has_pipes=True) as child:
        child.read_line(time.monotonic() + 20)


def test_cpu_and_memory_of_a_process_are_read() -> None:
    """CPU grows with work, memory is that of the process, and a process that has ended counts as 0."""
    pid = os.getpid()
    before = sum(read_cpu([pid]).values())
    sum(number * number for number in range(200_000))

    assert sum(read_cpu([pid]).values()) > before
    assert read_memory([pid]).rss > 1000
    with Child("brief", ["true"], cores=CORES) as child:
        pass
    assert read_cpu([child.pid]) == {}
    assert read_memory([child.pid]).rss == 0


def test_a_command_on_the_command_line_becomes_a_subject() -> None:
    """The first equals sign separates name and command, and braces that are not a placeholder stay."""
    subject = parse_subject("mine=./proxy --listen {port} --to http://h?a=b {other}")

    assert subject.name == "mine"
    assert subject.command == "./proxy --listen {port} --to http://h?a=b {other}"
    assert "mine" not in known_subjects()


@pytest.mark.parametrize("text", ["mine", "=cmd {port}", "mine=", "mine=./proxy", "mine='{port}"])
def test_a_command_that_cannot_work_is_refused(text: str) -> None:
    """A subject without a name, a command, a port or balanced quotes is refused with a sentence."""
    with pytest.raises(ValueError, match=r"must|cannot"):
        parse_subject(text)
