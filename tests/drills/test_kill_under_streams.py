"""A drill: ``kill -9`` amid many streams, again and again, and what the event log and a sink hold then.

Three kills amid 40 streams in the ordinary suite; with ``CGW_LONG_DRILLS=1`` 50 amid 200, in ten rounds.
``-s`` prints the figures.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import trio
from attrs import define, field

from cgw.events.reading import read_events
from cgw.events.segments import list_segments
from cgw.events.shipping.status import read_status
from cgw.model import EventName
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import open_scripted_upstream
from tests.support.collector import Collector, open_collector
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, OPENAI_KEY, OPENAI_MODEL, build_environ
from tests.support.limits import PATIENT
from tests.support.process import open_gateway_process
from tests.support.requests import build_request
from tests.support.waiting import wait_until

IS_LONG = "CGW_LONG_DRILLS" in os.environ
ROUNDS, KILLS, STREAMS = (10, 5, 200) if IS_LONG else (1, 3, 40)
"""Rounds, because a single test may take two minutes at most; kills of a round share a folder."""

PLAIN_CLIENTS = STREAMS // 10
"""These ask for answers that are not streamed, beside the streams."""

WORDS, WORDS_PER_SECOND = 12, 20
"""A stream lasts 0.6 s, so that with 200 at once three in 10 ms are at their end."""

MAX_RUN_SECONDS = 2.0
SCRIPTS = {
    ANTHROPIC_MODEL: Script(answer="word " * WORDS, tokens_per_second=WORDS_PER_SECOND, api_key=ANTHROPIC_KEY),
    OPENAI_MODEL: Script(answer="word " * WORDS, tokens_per_second=WORDS_PER_SECOND, api_key=OPENAI_KEY),
}
LAST_EVENTS = {
    "/v1/completions/anthropic-messages": b'data: {"type":"message_stop"}',
    "/v1/completions/openai": b"data: [DONE]",
}
"""The event by which a route's API says that a stream is over: the providers' SDKs do not wait for more."""

LAST_CHUNK = b"\r\n0\r\n\r\n"


@define
class Clients:
    """Clients that ask without a pause until their gateway dies, and what each of their exchanges came to.

    Exchanges are known by numbers, which the requests and the events carry. ``whole`` are those whose answer is
    complete for HTTP; ``finished`` those whose stream brought its API's last event, with its end or without.
    """

    asked: set[str] = field(factory=set)
    whole: set[str] = field(factory=set)
    finished: set[str] = field(factory=set)
    open_streams: int = 0
    _numbers: Iterator[int] = field(factory=count)

    async def run(self, port: int, path: str, *, is_stream: bool) -> None:
        """Ask on one connection until it ends."""
        await trio.sleep(random.random() * WORDS / WORDS_PER_SECOND)  # so that streams end at different times
        try:
            async with await trio.open_tcp_stream("127.0.0.1", port) as connection:
                while await self._ask(connection, path, is_stream=is_stream):
                    pass
        except OSError:
            return  # the gateway was gone before

    async def _ask(self, connection: trio.SocketStream, path: str, *, is_stream: bool) -> bool:
        number = str(next(self._numbers))
        self.asked.add(number)
        mark = f"\r\nx-sourcegraph-actor-anonymous-uid: {number}\r\n\r\n".encode()
        answer = b""
        self.open_streams += is_stream
        try:
            await connection.send_all(build_request(path, stream=is_stream).replace(b"\r\n\r\n", mark, 1))
            while not (is_whole := is_complete(answer, is_stream=is_stream)):
                data = await connection.receive_some(65536)
                if not data:
                    break
                answer += data
        except trio.BrokenResourceError:
            is_whole = is_complete(answer, is_stream=is_stream)
        finally:
            self.open_streams -= is_stream
        assert not answer or answer.startswith(b"HTTP/1.1 200 ")
        if is_stream and LAST_EVENTS[path] in answer:
            self.finished.add(number)
        if is_whole:
            self.whole.add(number)
        return is_whole


def is_complete(answer: bytes, *, is_stream: bool) -> bool:
    """Return whether a client has an answer up to the end of its body."""
    if is_stream:
        return answer.endswith(LAST_CHUNK)
    head, _, body = answer.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(lengths) and len(body) == int(lengths[0].partition(b":")[2])


def list_open(folder: Path) -> set[str]:
    """Return the names of the open segments."""
    return {segment.name for segment in list_segments(folder) if segment.is_open} if folder.exists() else set()


async def run_until_killed(port: int, pid: int, clients: Clients, seconds: float) -> None:
    """Kill the gateway ``seconds`` after all streams are open; return when all clients have read what there is."""

    def kill() -> None:
        time.sleep(seconds)  # in a thread: the moment must not depend on what this process's loop is doing
        os.kill(pid, signal.SIGKILL)

    async with trio.open_nursery() as nursery:
        paths = list(LAST_EVENTS)
        for number in range(STREAMS + PLAIN_CLIENTS):
            nursery.start_soon(
                lambda path, is_stream: clients.run(port, path, is_stream=is_stream),
                paths[number % 2],
                number < STREAMS,
            )
        await wait_until(lambda: clients.open_streams > STREAMS * 0.9, seconds=30)
        await trio.to_thread.run_sync(kill)


def is_all_shipped(folder: Path) -> bool:
    """Return whether the sink has all events, as `cgw events status` shows it."""
    (status,) = read_status(folder)
    return status.unshipped_bytes == 0


def check_sink(number: int, clients: Clients, collector: Collector, kills: int) -> None:
    """Check that the sink has each whole answer's event, once after duplicates are removed by id, and no other."""
    distinct = {event["id"]: event for event in collector.taken}
    shipped = Counter(event["metadata"].get("sg_actor_anonymous_uid") for event in distinct.values())
    lost = (clients.whole | clients.finished) - set(shipped)
    sys.stdout.write(
        f"\nround {number}: the sink has {len(distinct)} events of {len(clients.whole)} whole answers, {len(lost)} are "
        f"missing; {len(collector.taken) - len(distinct)} came twice over {kills} kills\n"
    )
    assert not lost
    assert set(shipped) <= clients.asked
    assert set(shipped.values()) == {1}


@pytest.mark.skipif(not Path("/proc").exists(), reason="made for Linux")
@pytest.mark.parametrize("number", range(ROUNDS))
async def test_no_whole_answer_lacks_its_event(tmp_path: Path, number: int) -> None:
    """Over all kills of a round, no whole answer lacks its event, and there is none twice or without an exchange."""
    folder = tmp_path / "events"
    clients = Clients()
    dead: set[str] = set()
    adopted = 0
    async with open_scripted_upstream(SCRIPTS) as upstream, open_collector() as collector:
        # A quick pace of batches, so that kills hit batches on their way, too.
        shipping = {"CODY_GATEWAY_EVENTS_HTTP_URL": collector.url, "CODY_GATEWAY_EVENTS_BATCH_AGE": "50ms"}
        environ = build_environ(
            tmp_path, upstream.url, limit=10**6, concurrent_requests=10**6, more={**PATIENT, **shipping}
        )
        for turn in range(KILLS + 1):
            async with open_gateway_process(environ, tmp_path / "log") as gateway:
                assert len(list_open(folder)) == 1
                assert not dead & list_open(folder)
                adopted += len(dead)
                if turn == KILLS:
                    # The last one ships what the killed ones left.
                    await wait_until(lambda: is_all_shipped(folder), seconds=30)
                    break
                dead = list_open(folder)
                seconds = random.random() * MAX_RUN_SECONDS
                await run_until_killed(gateway.port, gateway.process.pid, clients, seconds)
                assert await gateway.wait() == -signal.SIGKILL
    check_sink(number, clients, collector, KILLS)
    events = list(read_events(folder))
    assert {event.id for event in events} == set(collector.ids)
    recorded = Counter(event.metadata.get("sg_actor_anonymous_uid") for event in events)
    lost = clients.whole - set(recorded)
    lost_finished = clients.finished - set(recorded)
    sys.stdout.write(
        f"\nround {number}: {KILLS} kills amid {STREAMS} streams: {len(clients.asked)} exchanges, "
        f"{len(clients.whole)} whole answers, "
        f"{len(lost)} of them without an event; {len(clients.finished)} streams brought their last event, "
        f"{len(lost_finished)} of them without a recorded one; {len(events)} events, {adopted} segments adopted\n"
    )
    assert len(clients.asked - clients.whole) >= KILLS * STREAMS / 2  # the kills did hit streams
    assert not lost
    assert not lost_finished
    assert len({event.id for event in events}) == len(events)
    assert set(recorded.values()) == {1}
    assert {event.name for event in events} == {EventName.COMPLETIONS_FINISHED}
    assert set(recorded) <= clients.asked
    assert adopted == KILLS
