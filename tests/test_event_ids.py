"""Ids of usage events: their form, their order, and that no two are equal."""

from __future__ import annotations

import os
import threading
import time
import uuid

from cgw.event_ids import EventIds, build_event_id


def test_ids_are_uuids_of_version_7() -> None:
    """An id is the text of a UUID of version 7, and holds the time of its making in milliseconds."""
    before = time.time_ns() // 1_000_000
    text = build_event_id()
    after = time.time_ns() // 1_000_000
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert before <= parsed.int >> 80 <= after


def test_ids_sort_by_time() -> None:
    """Ids of one process sort in the order in which they were made."""
    made = []
    for _ in range(1000):
        made.append(build_event_id())
        time.sleep(0)
    assert made == sorted(made)


def test_ids_differ_without_a_clock() -> None:
    """Within a process the count alone tells ids apart; between sources, the random start does."""
    one, other = EventIds(), EventIds()
    tails = [ids.build()[19:] for ids in (one, other) for _ in range(1000)]
    assert len(set(tails)) == 2000
    assert int(tails[1][-12:], 16) == int(tails[0][-12:], 16) + 1


def test_threads_get_different_ids() -> None:
    """Threads that make ids at once get different ones."""
    found: list[list[str]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda ids=ids: ids.extend(build_event_id() for _ in range(5000))) for ids in found
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({made for ids in found for made in ids}) == 20_000


def test_forked_process_counts_apart() -> None:
    """A forked child does not go on with its parent's counter."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, build_event_id().encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    theirs = os.read(reader, 100).decode()
    os.close(reader)
    ours = build_event_id()
    assert len(theirs) == len(ours)
    assert theirs[19:] != ours[19:]
