"""Golden streams of every dialect through the whole gateway: byte for byte, however the upstream cuts them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from attrs import define, field

from cgw.events.reading import read_events
from cgw.service.lifecycle import Service
from tests.support.golden_streams import BY_UPSTREAM, Golden
from tests.support.provider_routes import CASES, HELLO, RouteCase, open_full_gateway
from tests.support.raw_server import open_raw_server, read_request
from tests.support.streams import encode_chunked, pick_cuts, split_events

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

CLOSE = b"close the connection here"

EACH_API = {case.upstream_path: case for case in CASES.values()}
"""One route to each API: the routes to one API share streams and final markers, and the relay knows nothing else."""

CUT_AT_EACH_BYTE = ("/v1/complete", "/inference/v1/completions")
"""APIs whose streams are short, one with named events and one without: each of their bytes is cut at."""

EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


@define
class Bench:
    """A gateway with all routes, in front of an upstream that plays ``pieces`` one by one."""

    gateway: Service
    client: httpx.AsyncClient
    pieces: list[bytes]
    targets: list[bytes] = field(factory=list)
    events_seen: int = 0

    async def post(self, case: RouteCase, pieces: list[bytes]) -> bytes:
        """Return the body that the client gets."""
        self.pieces[:] = pieces
        body = case.build_body(stream=True)
        answer = await self.client.post(case.path, json=body, headers=case.build_headers())
        assert answer.status_code == 200
        return answer.content

    def read_event(self) -> dict[str, Any]:
        """Return the metadata of the event of the only exchange since the last call."""
        (event,) = [event.metadata for event in read_events(self.gateway.events_folder)][self.events_seen :]
        self.events_seen += 1
        return dict(event)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    pieces: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        while await read_request(stream) is not None:
            for piece in pieces:
                if piece is CLOSE:
                    return
                await stream.send_all(piece)
                await trio.testing.wait_all_tasks_blocked()  # so that the piece is read alone

    async with (
        open_raw_server(play) as port,
        open_full_gateway(tmp_path, f"http://127.0.0.1:{port}") as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        yield Bench(gateway, client, pieces)


def check_event(event: dict[str, Any], golden: Golden) -> None:
    usage = golden.usage
    assert event["usage_quality"] == usage.quality
    assert event["prompt_character_count"] == len(HELLO)
    assert event["completion_character_count"] == usage.completion_character_count
    assert event.get("prompt_token_count") == usage.prompt_token_count
    assert event.get("completion_token_count") == usage.completion_token_count
    assert event.get("prompt_cache_read_token_count") == (usage.cache_read_token_count or None)
    assert event.get("prompt_cache_write_token_count") == (usage.cache_write_token_count or None)


@EACH_CASE
async def test_golden_streams_pass_unchanged_and_leave_their_usage(bench: Bench, case: RouteCase) -> None:
    """Every stream, an event in each chunk, arrives as it was sent, and its usage is in the event."""
    for golden in BY_UPSTREAM[case.upstream_path].values():
        chunks = encode_chunked(split_events(golden.body))
        assert await bench.post(case, [HEAD, chunks]) == golden.body
        check_event(bench.read_event(), golden)


@pytest.mark.parametrize("case", EACH_API.values(), ids=list(EACH_API))
async def test_a_stream_cut_at_any_byte_passes_unchanged(bench: Bench, case: RouteCase) -> None:
    """A stream that the upstream sends in two pieces, cut anywhere in body and framing, arrives as it was sent."""
    golden = BY_UPSTREAM[case.upstream_path]["text"]
    chunks = encode_chunked(split_events(golden.body))
    cuts = pick_cuts(chunks, each_byte=case.upstream_path in CUT_AT_EACH_BYTE)
    for cut in cuts:
        assert await bench.post(case, [HEAD + chunks[:cut], chunks[cut:]]) == golden.body
    events = [event.metadata for event in read_events(bench.gateway.events_folder)]
    assert len(events) == len(cuts)
    for event in events:
        check_event(dict(event), golden)


@EACH_CASE
async def test_a_stream_that_breaks_off_is_visible_and_partial(bench: Bench, case: RouteCase) -> None:
    """Without the end of its framing a stream breaks off for the client, too, and its event says so."""
    golden = BY_UPSTREAM[case.upstream_path]["text"]
    first = split_events(golden.body)[0]
    with pytest.raises(httpx.RemoteProtocolError):
        await bench.post(case, [HEAD + encode_chunked([first]).removesuffix(b"0\r\n\r\n"), CLOSE])
    event = bench.read_event()
    assert (event["usage_quality"], event["resolved_status_code"]) == ("partial", 200)
    assert event["completion_character_count"] <= (golden.usage.completion_character_count or 0)
