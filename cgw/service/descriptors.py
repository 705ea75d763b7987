"""The limit of open descriptors (RLIMIT_NOFILE): raised at start, and what it leaves for connections."""

from __future__ import annotations

import logging
import resource

RESERVED_DESCRIPTORS = 64
"""For everything but users' connections: the log, the data directory, Redis, epoll instances, the admin port."""

DESCRIPTORS_PER_CONNECTION = 2
"""Each client connection may need an upstream socket of its own."""

MOST_DESCRIPTORS = 1 << 20
"""Some container runtimes have hard limits of 10⁹, and programs that walk the whole range; this is ample."""

MOST_CONNECTIONS = 100_000
"""The largest default, whatever the descriptor limit: memory is the next bound."""

FEW_CONNECTIONS = 1000
"""A limit that leaves fewer is worth a warning."""

logger = logging.getLogger("cgw.service")


def raise_descriptor_limit() -> int:
    """Raise the process's soft limit of open descriptors to its hard limit; return the one that holds now.

    Children inherit it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            logger.warning(
                "the limit of open descriptors stays at %d: it cannot be raised to %d: %s", soft, wanted, error
            )
        else:
            logger.info("the limit of open descriptors is raised from %d to its hard limit of %d", soft, wanted)
    return read_descriptor_limit()


def read_descriptor_limit() -> int:
    """Return the soft limit of open descriptors, at most :data:`MOST_DESCRIPTORS`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, MOST_DESCRIPTORS)


def compute_max_connections(descriptor_limit: int) -> int:
    """Return how many client connections ``descriptor_limit`` allows, each with an upstream socket; at least 1."""
    fitting = (descriptor_limit - RESERVED_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION
    return max(1, min(fitting, MOST_CONNECTIONS))


def choose_max_connections(configured: int | None, descriptor_limit: int) -> int:
    """Return ``configured``, or the number that ``descriptor_limit`` allows; warn where that is small or too small."""
    fitting = compute_max_connections(descriptor_limit)
    if configured is not None:
        if configured > fitting:
            logger.warning(
                "CODY_GATEWAY_MAX_CONNECTIONS is %d, but the limit of %d open descriptors suffices for %d connections "
                "with an upstream socket each: raise it (LimitNOFILE=, ulimit -n) or lower the setting",
                configured,
                descriptor_limit,
                fitting,
            )
        return configured
    if fitting < FEW_CONNECTIONS:
        logger.warning(
            "the limit of %d open descriptors allows %d client connections only: raise it (LimitNOFILE=, ulimit -n)",
            descriptor_limit,
            fitting,
        )
    return fitting
