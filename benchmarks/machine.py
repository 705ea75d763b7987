"""CPU time and memory of process trees, from the kernel; the machine's description and its cores."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import frozen

from benchmarks.results import Machine

__all__ = ["Cores", "Memory", "describe_machine", "pick_cores", "process_tree", "read_cpu", "read_memory"]

PROC = Path("/proc")


@frozen
class Cores:
    """The cores of a run. With at least two, the subject has one alone."""

    subject: tuple[int, ...]
    upstream: tuple[int, ...]
    load: tuple[int, ...]


@frozen
class Memory:
    """Memory of all processes of a tree, in KiB. ``pss`` counts a page shared by n processes as 1/n."""

    rss: int
    pss: int


def pick_cores() -> Cores:
    """Pick the last core for the subject, the first for the upstream, and the second of three or more for the load."""
    cores = sorted(os.sched_getaffinity(0))
    first, last = cores[:1], cores[-1:]
    return Cores(tuple(last), tuple(first), tuple(cores[1:2] if len(cores) > 2 else first))


def process_tree(root: int) -> list[int]:
    """Return ``root`` and its running descendants."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    tree, queue = [], [root]
    while queue:
        pid = queue.pop()
        tree.append(pid)
        queue.extend(children.get(pid, ()))
    return tree


def _parents() -> Iterator[tuple[int, int]]:
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # the process has ended since it was listed
                continue
            # The name in parentheses may contain blanks and parentheses itself: count fields from its end (proc(5)).
            yield int(entry.name), int(stat.rpartition(")")[2].split()[1])


def read_cpu(pids: Sequence[int]) -> dict[tuple[int, str], int]:
    """Return the CPU time of each process in nanoseconds, by pid and name, including threads that have ended.

    Read from the process's own CPU clock (``clock_getcpuclockid(3)``), which is exact, where ``/proc`` counts ticks of
    10 ms. Processes that have ended are left out.
    """
    used = {}
    for pid in pids:
        try:
            name = (PROC / str(pid) / "comm").read_text().strip()
            used[pid, name] = time.clock_gettime_ns(_cpu_clock(pid))
        except OSError:
            continue
    return used


def _cpu_clock(pid: int) -> int:
    """Return the kernel's id for a process's CPU clock: ``MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)``."""
    return (~pid << 3) | 2


def read_memory(pids: Sequence[int]) -> Memory:
    """Return the total of ``smaps_rollup`` over ``pids``. Processes that have ended count as 0."""
    rss = pss = 0
    for pid in pids:
        try:
            lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, rest = line.partition(":")
            if name == "Rss":
                rss += int(rest.split()[0])
            elif name == "Pss":
                pss += int(rest.split()[0])
    return Memory(rss, pss)


def describe_machine(cores: Cores) -> Machine:
    return Machine(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        subject_cores=list(cores.subject),
        load_cores=sorted({*cores.upstream, *cores.load}),
    )


def _cpu_model() -> str:
    try:
        for line in (PROC / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
