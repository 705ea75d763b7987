"""Metrics of the process and of the interpreter, under the names that every Prometheus client uses."""

from __future__ import annotations

import gc
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cgw.telemetry.metrics import MetricReading, counter, gauge

PROCESS_METRICS = (
    CPU := counter("process_cpu_seconds", "CPU time of the process, user and system.", unit="s"),
    RESIDENT := gauge("process_resident_memory_bytes", "Resident memory.", unit="By"),
    VIRTUAL := gauge("process_virtual_memory_bytes", "Virtual memory.", unit="By"),
    START := gauge("process_start_time_seconds", "The start of the process, in Unix seconds.", unit="s"),
    OPEN_DESCRIPTORS := gauge("process_open_fds", "Open file descriptors."),
    MAX_DESCRIPTORS := gauge("process_max_fds", "The most file descriptors that may be open."),
    THREADS := gauge("process_threads", "Threads of the interpreter."),
    COLLECTIONS := counter("python_gc_collections", "Runs of the garbage collector.", "generation"),
    UNCOLLECTABLE := counter("python_gc_objects_uncollectable", "Objects that could not be collected.", "generation"),
)

_CLOCK_TICKS_FIELD = 19  # of /proc/self/stat, counted after the name, which may hold spaces: "starttime"


def read_process() -> Iterator[MetricReading]:
    """Return the readings. Blocks for a moment: it reads ``/proc``."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield CPU.read(usage.ru_utime + usage.ru_stime)
    pages = Path("/proc/self/statm").read_text("ascii").split()
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    yield VIRTUAL.read(int(pages[0]) * page_bytes)
    yield RESIDENT.read(int(pages[1]) * page_bytes)
    yield START.read(_read_start())
    yield OPEN_DESCRIPTORS.read(len(os.listdir("/proc/self/fd")) - 1)  # without that of the listing itself
    yield MAX_DESCRIPTORS.read(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield THREADS.read(threading.active_count())
    for generation, counts in enumerate(gc.get_stats()):
        yield COLLECTIONS.read(counts["collections"], str(generation))
        yield UNCOLLECTABLE.read(counts["uncollectable"], str(generation))


def _read_start() -> float:
    fields = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    seconds_after_boot = int(fields[_CLOCK_TICKS_FIELD]) / os.sysconf("SC_CLK_TCK")
    # Not btime of /proc/stat, which counts whole seconds only.
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return round(booted + seconds_after_boot, 2)
