"""The times at which the kernel received data: earlier than a process can know, as it has to be woken up to read it.

On an idle machine a core takes 100 µs and more to wake up. Under load, data waits in sockets until the loop comes to
it. A peer waits for both, and no clock of the process shows either. With ``SO_TIMESTAMPNS`` Linux tells with the data
when it came (socket(7)); it costs a read 1 µs more. Where nothing is told, the time of reading stands for it.

The kernel's times are by the wall clock. They are compared with the wall clock at once, and only the difference is
used: a clock that is set in between falsifies the requests that are waiting right then, by at most
:data:`MAX_WAIT_SECONDS`.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

CONTROL_BYTES = socket.CMSG_SPACE(16)
"""The room that ``recvmsg_into`` needs for one time."""

MAX_WAIT_SECONDS = 60.0
"""The longest that data is believed to have waited: whatever seems older came before the wall clock was set."""

Ancillary = list[tuple[int, int, bytes]]
"""What ``recvmsg_into`` returns besides the data."""

_SO_TIMESTAMPNS = 35  # of Linux, for nearly all architectures; Python has no name for it
_unpack_timespec: Callable[[bytes], tuple[int, int]] = struct.Struct("@ll").unpack


def ask_for_arrivals(sock: socket.socket) -> None:
    """Have the kernel tell when data of ``sock`` comes, where it can; sockets that a listener accepts inherit it."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def read_arrival(ancillary: Ancillary, earliest: float = 0.0) -> float:
    """Return the Unix time at which the data of one read came, at least ``earliest``; 0.0 if unknown.

    Of several segments, it is that of the last: one read has more than one of large data only.
    """
    if not ancillary:
        return 0.0
    # It is the only message that is asked for.
    seconds, nanoseconds = _unpack_timespec(ancillary[0][2])
    arrived_at = seconds + nanoseconds * 1e-9
    return max(earliest, arrived_at)


def measure_wait(arrived_at: float, now: float) -> float:
    """Return for how many seconds data had waited ``now``, both in Unix time; 0.0 where that is not known."""
    seconds = now - arrived_at
    return seconds if 0.0 < seconds < MAX_WAIT_SECONDS else 0.0


def find_arrival(ancillary: Ancillary, now: float, earliest: float) -> float:
    """Return the time of :func:`read_arrival` by another clock, which shows ``now``; ``now`` itself if unknown.

    It is at least ``earliest``.
    """
    if not ancillary:
        return now
    # In one function, as every exchange calls it.
    seconds, nanoseconds = _unpack_timespec(ancillary[0][2])
    waited = time.time() - seconds - nanoseconds * 1e-9
    if not 0.0 < waited < MAX_WAIT_SECONDS:
        return now
    arrived_at = now - waited
    # Earlier if the process lost its core between the readings of the two clocks, or the wall clock was set.
    return max(earliest, arrived_at)
