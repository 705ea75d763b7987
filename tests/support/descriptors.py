"""What the process holds of the kernel's: descriptors, and registrations with all of its epoll instances."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from attrs import frozen


@frozen
class Descriptors:
    """Open descriptors, and sockets (or nested instances) that are registered with an epoll instance."""

    open: int
    registered: int


def count_descriptors() -> Descriptors:
    """A snapshot, from ``/proc/self``."""
    count = registered = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.endswith("[eventpoll]"):
                registered += Path(f"/proc/self/fdinfo/{name}").read_text().count("tfd:")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        count += 1
    return Descriptors(count, registered)


def allow_descriptors(count: int) -> int:
    """Raise the soft limit of open descriptors to ``count`` if the hard one lets us; the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def read_resident_bytes() -> int:
    """The process's resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
