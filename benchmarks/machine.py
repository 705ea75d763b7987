"""What the kernel says: CPU time and memory of process trees, the machine's name, cores."""

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
    """Where things run: the subject alone on its core, where there are two; the load on one or two others."""

    subject: tuple[int, ...]
    upstream: tuple[int, ...]
    load: tuple[int, ...]


@frozen
class Memory:
    """Of all processes of a tree, in KiB. ``pss`` counts a page shared by n processes as 1/n."""

    rss: int
    pss: int


def pick_cores() -> Cores:
    """The last core for the subject, the first for the upstream, the second for the load when there are three."""
    cores = sorted(os.sched_getaffinity(0))
    first, last = cores[:1], cores[-1:]
    return Cores(tuple(last), tuple(first), tuple(cores[1:2] if len(cores) > 2 else first))


def process_tree(root: int) -> list[int]:
    """``root`` and all its descendants that are alive."""
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
            except OSError:  # it ended meanwhile
                continue
            yield int(entry.name), int(stat.rpartition(")")[2].split()[1])


def read_cpu(pids: Sequence[int]) -> dict[tuple[int, str], int]:
    """Nanoseconds of CPU so far of each process (pid and name), its threads that have ended included.

    From the process's own CPU clock (``clock_getcpuclockid(3)``), which is exact. Those that have ended are left out.
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
    """The kernel's number for the CPU clock of a process: ``MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)``."""
    return (~pid << 3) | 2


def read_memory(pids: Sequence[int]) -> Memory:
    """From ``smaps_rollup``; processes that have ended count nothing."""
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
