"""The allocator keeps what a large body leaves: the next one faults no pages in."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource
from cgw.allocator import keep_freed_memory
assert keep_freed_memory() or not {is_set}
SIZE = 2**20
def use():
    pieces = [bytes(SIZE) for _ in range(6)]
    text = b"".join(pieces[:1]).decode()
    del pieces, text
for _ in range(5):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


def count_faults(*, is_set: bool) -> float:
    """Return the pages that a round of large pieces faults in, in a process of its own."""
    program = COUNT.replace("{is_set}", str(is_set))
    if not is_set:
        program = program.replace("assert keep_freed_memory() or not False\n", "")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_large_pieces_are_used_again() -> None:
    """Six megabytes that are freed and allocated again cost hardly a page fault; by default they cost hundreds."""
    assert count_faults(is_set=True) < 64
    assert count_faults(is_set=False) > 256
