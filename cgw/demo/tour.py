"""``cgw demo``: one streaming answer through a whole gateway, and what it leaves behind. No key, no network.

Everything runs in this process and one Trio run: a scripted upstream, the gateway with its embedded store, and the
client; only the store is a process of its own, as always. Nothing is left when it ends.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import trio
from attrs import frozen

from cgw.actors.tokens import hash_token, new_token
from cgw.demo.paste import CLAUDE, build_snippets
from cgw.demo.recorded import count_completions, read_last_completion
from cgw.demo.screen import Screen, has_colour
from cgw.demo.tour_client import Client, Overhead, RequestFailed, Target, measure_overhead, open_client
from cgw.errors import CgwError, ConfigError, explain_os_error
from cgw.events.lines import EventLine
from cgw.service.lifecycle import Service, open_service
from cgw.service.settings import load_settings
from cgw.telemetry.logs import Logs, open_logging
from cgw.testing.script import Script
from cgw.testing.upstream import ScriptedUpstream, open_scripted_upstream
from cgw.wire.messages import ResponseHead
from cgw.wire.sse import FrameParser

HOST = "127.0.0.1"
DEFAULT_PORT = 9992
TOKENS_PER_SECOND = 30
FIRST_TOKEN_SECONDS = 0.3
MEASURED_MODEL = "claude-haiku-4-5"
MEASURED_ROUNDS = 40
KEPT_REQUESTS = 50

ROUTE = "/v1/completions/anthropic-messages"
QUESTION = "What happens to my request on its way?"
SHOWN_HEADERS = (
    "x-cody-resolved-model",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "ratelimit",
    "ratelimit-policy",
)

SETTLE_SECONDS = 1.0
EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
"""What shells use for a program that SIGINT ended."""


def run_demo(*, once: bool, port: int | None = None) -> int:
    """Give the tour on standard output, and keep serving until SIGINT or SIGTERM unless ``once``.

    ``port`` is the gateway's; by default 9992, or any free one when that is taken. Returns the exit status: 0 when
    the tour was given, 1 (with one sentence on standard error) when something would not start, 130 when a signal
    ended the tour before its end. Blocks; runs Trio itself.
    """
    screen = Screen(sys.stdout)
    try:
        settled_port = choose_port(port)
        # While the tour speaks, the gateway's log keeps quiet: only errors show.
        with tempfile.TemporaryDirectory(prefix="cgw-demo-") as directory, _open_log("ERROR"):
            return trio.run(_Tour(screen, Path(directory), settled_port, once).run)
    except BaseException as error:
        sentences, status = _explain(error)
        if status is None:
            raise
        for sentence in sentences:
            print(f"cgw demo: {sentence}", file=sys.stderr)
        return status


def choose_port(port: int | None) -> int:
    """The port to serve on: ``port`` itself; without one, 9992, or 0 (any free one) when that is taken.

    Raises :exc:`~cgw.errors.ConfigError` when ``port`` is taken.
    """
    wanted = port or DEFAULT_PORT
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except (OSError, OverflowError) as error:
            if not port:
                return 0
            raise ConfigError(
                [f"port {port} cannot be used ({explain_os_error(error)}); --port names another"]
            ) from error
    return wanted


def _open_log(level: str) -> AbstractContextManager[Logs]:
    """The log as people read it, on standard error; coloured where that is a terminal."""
    return open_logging(sys.stderr, is_terminal=True, has_colour=has_colour(sys.stderr), level=level)


async def _wait_settled(service: Service) -> None:
    """Let the tour's own exchanges come to their end, so that what follows in log and events is the visitor's."""
    with trio.move_on_after(SETTLE_SECONDS):
        while service.server.connection_count:  # noqa: ASYNC110 - at most a few turns
            await trio.sleep(0.005)


def _explain(error: BaseException) -> tuple[list[str], int | None]:
    """Sentences for people and an exit status; no status for errors that only a traceback explains."""
    if isinstance(error, BaseExceptionGroup):
        parts = [_explain(part) for part in error.exceptions]
        statuses = [status for _, status in parts]
        status = None if None in statuses else max(status for status in statuses if status is not None)
        return [sentence for sentences, _ in parts for sentence in sentences], status
    if isinstance(error, KeyboardInterrupt):
        return [], EXIT_INTERRUPTED
    if isinstance(error, SystemExit):  # what rich raises when nobody reads standard output any more
        return [], EXIT_FAILURE
    if isinstance(error, ConfigError):
        return list(error.problems), EXIT_FAILURE
    if isinstance(error, (CgwError, OSError)):
        return [str(error)], EXIT_FAILURE
    return [], None


@frozen
class _Actors:
    """The tour's actors: the one that it shows, and one that only measures, so that it leaves the limits alone."""

    shown_token: str
    measuring_token: str
    shown_id: str = "demo"
    measuring_id: str = "demo-measuring"

    def build_file(self) -> str:
        """The actors file, in TOML."""
        return "\n".join(
            f"""\
[[actor]]
id = "{actor_id}"
name = "{name}"
token_sha256 = ["{hash_token(token)}"]
access_enabled = true
[actor.limits.chat_completions]
limit = 1000
interval = "24h"
allowed_models = ["*"]
concurrent_requests = {rate}
concurrent_requests_interval = "10s"
"""
            for actor_id, name, token, rate in (
                (self.shown_id, "Demo", self.shown_token, 50),
                (self.measuring_id, "Demo, measuring", self.measuring_token, 1000),
            )
        )


class _Tour:
    """The tour's parts in their order."""

    def __init__(self, screen: Screen, directory: Path, port: int, once: bool) -> None:
        self._screen = screen
        self._directory = directory
        self._port = port
        self._once = once
        self._actors = _Actors(new_token(), new_token())
        self._upstream_key = new_token()
        self._is_given = False
        self._events_folder: Path | None = None
        self._tour_events = 0

    async def run(self) -> int:
        """Give the tour; a signal ends it at any point."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals, nursery.cancel_scope)
            await self._give()
            nursery.cancel_scope.cancel()
        if self._is_given and not self._once:
            self._say_goodbye()
        return EXIT_OK if self._is_given else EXIT_INTERRUPTED

    async def _watch_signals(
        self, tour_scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                tour_scope.cancel()
                return

    async def _give(self) -> None:
        screen = self._screen
        screen.show_title(
            "cgw demo",
            "One streaming answer through a whole gateway, and what it leaves behind. No key and no network are "
            "needed: the answer comes from a script that keeps a real model's pace.",
        )
        async with open_scripted_upstream(self._scripts(), keep_requests=KEPT_REQUESTS) as upstream:
            settings = load_settings(self._environ(upstream.url))
            started = time.perf_counter()
            async with open_service(settings) as service:
                self._events_folder = service.events_folder
                self._show_start(service, upstream, time.perf_counter() - started)
                await self._show_answer(service)
                await self._show_overhead(service, upstream)
                self._show_snippets(service)
                await _wait_settled(service)
                self._tour_events = await trio.to_thread.run_sync(count_completions, service.events_folder)
                self._is_given = True
                if not self._once:
                    self._show_serving(service)
                    with _open_log("INFO"):
                        await trio.sleep_forever()

    def _scripts(self) -> dict[str, Script]:
        paced = Script(
            tokens_per_second=TOKENS_PER_SECOND,
            first_token_delay_seconds=FIRST_TOKEN_SECONDS,
            api_key=self._upstream_key,
        )
        at_once = Script(answer="At once.", tokens_per_second=0, api_key=self._upstream_key)
        return {"*": paced, MEASURED_MODEL: at_once}

    def _environ(self, upstream_url: str) -> dict[str, str]:
        actors_path = self._directory / "actors.toml"
        actors_path.write_text(self._actors.build_file())
        return {
            "PORT": str(self._port),
            "CODY_GATEWAY_HOST": HOST,
            "CODY_GATEWAY_ANTHROPIC_API_URL": upstream_url,
            "CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN": self._upstream_key,
            "CODY_GATEWAY_OPENAI_API_URL": upstream_url,
            "CODY_GATEWAY_OPENAI_ACCESS_TOKEN": self._upstream_key,
            "CODY_GATEWAY_ACTORS_FILE": str(actors_path),
            "CODY_GATEWAY_DATA_DIR": str(self._directory / "data"),
        }

    def _show_start(self, service: Service, upstream: ScriptedUpstream, seconds: float) -> None:
        self._screen.show_section("Started")
        gateway = f"{service.url}  (up in {seconds:.2f} s, embedded store included)"
        self._screen.show_facts(
            [
                ("gateway", gateway),
                ("scripted upstream", f"{upstream.url}  ({TOKENS_PER_SECOND} tokens a second)"),
                ("data folder", f"{self._directory}  (removed at the end)"),
            ]
        )
        if self._port == 0:
            self._screen.say(f"Port {DEFAULT_PORT} is taken by another program: the gateway has a free one instead.")

    async def _show_answer(self, service: Service) -> None:
        screen = self._screen
        screen.show_section("A streaming answer, as it arrives")
        screen.say(f'POST {ROUTE} as the actor "{self._actors.shown_id}": {QUESTION}', "dim")
        async with open_client(service.url) as client:
            target = self._target(service.url, self._actors.shown_token, CLAUDE)
            started = time.perf_counter()
            await client.send(target.path, target.headers, target.body)
            head = await client.receive_head()
            arrivals = await self._show_tokens(client)
            ended = time.perf_counter()
        if not arrivals:
            raise RequestFailed("the answer holds no tokens")
        first, gap = _in_ms(arrivals[0] - started), _in_ms(_longest_gap(arrivals))
        screen.say(
            f"{len(arrivals)} tokens in {ended - started:.2f} s: the first after {first} (the script waits "
            f"{_in_ms(FIRST_TOKEN_SECONDS)} before it), the longest gap {gap}.",
            "dim",
        )
        self._show_limits(head)
        # The event was written before the answer's last byte was released: it is there by now.
        event = await trio.to_thread.run_sync(read_last_completion, service.events_folder, self._actors.shown_id)
        if event is None:
            raise RequestFailed("the answer is whole, but its usage event is not in the event log")
        self._show_event(event)

    async def _show_tokens(self, client: Client) -> list[float]:
        parser, flow, arrivals = FrameParser(), self._screen.open_flow(), []
        while chunk := await client.receive_chunk():
            now = time.perf_counter()
            for frame in parser.feed(chunk):
                if frame.event == b"content_block_delta":
                    arrivals.append(now)
                    self._screen.show_token(flow, json.loads(frame.data)["delta"]["text"])
        self._screen.end_flow()
        return arrivals

    def _show_limits(self, head: ResponseHead) -> None:
        self._screen.show_section("What its headers say of the actor's limit")
        values = ((name, head.header(name.encode("ascii"))) for name in SHOWN_HEADERS)
        self._screen.show_facts([(name, value.decode("latin-1")) for name, value in values if value is not None])

    def _show_event(self, event: EventLine) -> None:
        self._screen.show_section("The usage event, written before the answer's last byte was released")
        facts = [("id", event.id), ("name", event.name), ("source", event.source), ("identifier", event.identifier)]
        facts += [("created_at", event.created_at)]
        facts += [
            (key, value if isinstance(value, str) else json.dumps(value)) for key, value in event.metadata.items()
        ]
        self._screen.show_facts(facts)

    async def _show_overhead(self, service: Service, upstream: ScriptedUpstream) -> None:
        self._screen.show_section("What cgw adds to the first byte")
        through = self._target(service.url, self._actors.measuring_token, MEASURED_MODEL)
        headers = {"x-api-key": self._upstream_key, "anthropic-version": "2023-06-01"}
        direct = Target(upstream.url, "/v1/messages", headers, through.body)
        overhead = await measure_overhead(through, direct, rounds=MEASURED_ROUNDS)
        self._screen.say(_tell_overhead(overhead))

    def _target(self, url: str, token: str, model: str) -> Target:
        content = [{"type": "text", "text": QUESTION}]
        body = {
            "model": model,
            "max_tokens": 1000,
            "stream": True,
            "messages": [{"role": "user", "content": content}],
        }
        headers = {
            "authorization": f"Bearer {token}",
            "x-sourcegraph-feature": "chat_completions",
            "content-type": "application/json",
        }
        return Target(url, ROUTE, headers, json.dumps(body).encode())

    def _show_snippets(self, service: Service) -> None:
        self._screen.show_section("Try it yourself")
        for snippet in build_snippets(service.url, self._actors.shown_token):
            self._screen.show_snippet(snippet)
        if self._once:
            self._screen.skip_line()
            self._screen.say("That was the tour. Without --once it keeps serving, and lines like these work.")

    def _show_serving(self, service: Service) -> None:
        self._screen.show_section("Serving")
        self._screen.say(f"{service.url} is open until Ctrl-C; each completion request gets a line here.")

    def _say_goodbye(self) -> None:
        if self._events_folder is None:
            return
        served = count_completions(self._events_folder) - self._tour_events
        self._screen.skip_line()
        self._screen.say(f"Served {served} {'completion' if served == 1 else 'completions'} after the tour. Bye.")


def _in_ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _longest_gap(arrivals: list[float]) -> float:
    return max((later - earlier for earlier, later in pairwise(arrivals)), default=0.0)


def _tell_overhead(overhead: Overhead) -> str:
    added, through, direct = (
        f"{seconds * 1000:.2f} ms"
        for seconds in (overhead.added_seconds, overhead.through_seconds, overhead.direct_seconds)
    )
    return (
        f"{added}: the first byte of a body takes {through} through cgw and {direct} straight from the upstream. "
        f"Medians of {overhead.rounds} requests each way, in turn, on warm connections, to a script that answers at "
        "once; client, gateway and upstream share this one process, so their work is in it too."
    )
