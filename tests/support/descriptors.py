"""Descriptors, epoll registrations and memory of this process, from ``/proc``."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from attrs import frozen


@frozen
class Descriptors:
    """Numbers of open descriptors, and of registrations with epoll instances."""

    open: int
    registered: int


def count_descriptors() -> Descriptors:
    """Count them now."""
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
    """Raise the soft limit of open descriptors to ``count`` if the hard one allows it; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def read_resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
