"""``cgw demo``: send one streaming request through a whole gateway and show what it records. No key, no network.

The scripted upstream, the gateway and the client share this process and one Trio run; the gateway's embedded store is a
process of its own, as in production. Files and processes are removed when the tour ends.
"""

from __future__ import annotations

import json
import secrets
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
from cgw.demo.recorded_events import count_completions, read_last_completion
from cgw.demo.screen import Screen, has_colour
from cgw.demo.snippets import CLAUDE, build_snippets
from cgw.demo.tour_client import Overhead, RequestFailed, TourClient, TourRequest, measure_overhead, open_tour_client
from cgw.errors import CgwError, ConfigError, explain_os_error
from cgw.events.lines import EventLine
from cgw.service.lifecycle import Service, open_service
from cgw.service.settings import load_settings
from cgw.telemetry.logs import Logs, open_logging
from cgw.testing.script import Script
from cgw.testing.scripted_sourcegraph import (
    SERVICE_TOKEN,
    ScriptedSourcegraph,
    ScriptedUser,
    open_scripted_sourcegraph,
)
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from cgw.wire.messages import ResponseHead
from cgw.wire.sse import FrameParser

HOST = "127.0.0.1"
# As in the gateway's settings.
DEFAULT_PORT = 9992
TOKENS_PER_SECOND = 30
FIRST_TOKEN_SECONDS = 0.3
# Not the model that is shown: its script has no pace.
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
"""128 + SIGINT, the status that shells report for a program ended by Ctrl-C."""


def run_demo(*, once: bool, port: int | None = None) -> int:
    """Print the tour to standard output, then keep serving until SIGINT or SIGTERM unless ``once``.

    ``port`` is the gateway's: 9992 by default, or any free port when that one is taken. Returns the exit status: 0
    when the tour was complete, 1 (with a sentence on standard error) when something could not start or standard
    output was closed, 130 when a signal ended the tour early. Blocks; runs Trio itself.
    """
    screen = Screen(sys.stdout)
    try:
        settled_port = choose_port(port)
        # Only errors: the gateway's usual log lines would stand between those of the tour.
        with tempfile.TemporaryDirectory(prefix="cgw-demo-") as directory, _open_log("ERROR"):
            return trio.run(_Tour(screen, Path(directory), settled_port, once).run)
    except BaseException as error:  # the boundary: known errors become a sentence and a status, others are raised
        sentences, status = _explain(error)
        if status is None:
            raise
        for sentence in sentences:
            print(f"cgw demo: {sentence}", file=sys.stderr)
        return status


def choose_port(port: int | None) -> int:
    """Return ``port`` if it is free. Without one, return 9992, or 0 (any free port) when 9992 is taken.

    Raises :exc:`~cgw.errors.ConfigError` when ``port`` cannot be used.
    """
    # A probe only: another program may still take the port before the gateway does, which is an error then.
    wanted = port or DEFAULT_PORT
    with socket.socket() as probe:
        # As the gateway will do: connections in TIME_WAIT from an earlier tour must not make the port look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except (OSError, OverflowError) as error:  # OverflowError: not in 0 to 65535
            if not port:
                return 0
            raise ConfigError(
                [f"port {port} cannot be used ({explain_os_error(error)}); --port names another"]
            ) from error
    return wanted


def _open_log(level: str) -> AbstractContextManager[Logs]:
    """Log to standard error in the format for people, coloured on a terminal."""
    return open_logging(sys.stderr, is_terminal=True, has_colour=has_colour(sys.stderr), level=level)


async def _wait_settled(service: Service) -> None:
    """Wait until the tour's own exchanges have ended, so that later log lines and events are the visitor's alone."""
    with trio.move_on_after(SETTLE_SECONDS):
        while service.server.connection_count:  # noqa: ASYNC110 - a few turns at most; the server has no event for it
            await trio.sleep(0.005)


def _explain(error: BaseException) -> tuple[list[str], int | None]:
    """Return sentences for people and an exit status; the status is ``None`` for errors that need a traceback."""
    if isinstance(error, BaseExceptionGroup):
        parts = [_explain(part) for part in error.exceptions]
        # One error without a sentence is enough for a traceback of the whole group.
        statuses = [status for _, status in parts]
        # Otherwise the highest: an interruption (130) explains the failures that come with it.
        status = None if None in statuses else max(status for status in statuses if status is not None)
        return [sentence for sentences, _ in parts for sentence in sentences], status
    if isinstance(error, KeyboardInterrupt):
        # Ctrl-C before the signal receiver is open; later, it cancels the tour.
        return [], EXIT_INTERRUPTED
    if isinstance(error, SystemExit):  # rich raises it when standard output is a closed pipe
        return [], EXIT_FAILURE
    if isinstance(error, ConfigError):
        return list(error.problems), EXIT_FAILURE
    if isinstance(error, (CgwError, OSError)):
        return [str(error)], EXIT_FAILURE
    return [], None


@frozen
class _Actors:
    """The tour's two actors. Measurements have one of their own, so that they do not use up the limit that is shown."""

    shown_token: str
    measuring_token: str
    shown_id: str = "demo"
    measuring_id: str = "demo-measuring"

    def build_file(self) -> str:
        """Return the content of the actors file, as TOML."""
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
                # A rate above the number of measured rounds, so that none is refused.
                (self.measuring_id, "Demo, measuring", self.measuring_token, 1000),
            )
        )


class _Tour:
    """The parts of the tour, in the order in which they are shown."""

    def __init__(self, screen: Screen, directory: Path, port: int, once: bool) -> None:
        self._screen = screen
        self._directory = directory
        self._port = port
        self._once = once
        self._actors = _Actors(new_token(), new_token())
        # New for each tour: nothing but this gateway can use the scripted upstream.
        self._upstream_key = new_token()
        # Of a user of the scripted Sourcegraph.com. Tokens of its form are random, too.
        self._user_token = f"sgd_{secrets.token_hex(32)}"
        self._is_complete = False
        self._events_folder: Path | None = None
        self._tour_events = 0

    async def run(self) -> int:
        """Run the tour until its end or a signal; return the exit status."""
        async with trio.open_nursery() as nursery:
            # First of all: from here on a signal cancels the tour in order, so that files and processes are removed.
            await nursery.start(self._watch_signals, nursery.cancel_scope)
            await self._show_all()
            nursery.cancel_scope.cancel()
        if self._is_complete and not self._once:
            self._say_goodbye()
        return EXIT_OK if self._is_complete else EXIT_INTERRUPTED

    async def _watch_signals(
        self, tour_scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                tour_scope.cancel()
                return

    async def _show_all(self) -> None:
        screen = self._screen
        screen.show_title(
            "cgw demo",
            "One streaming answer through a whole gateway, and what it leaves behind. No key and no network are "
            "needed: the answer comes from a script that keeps a real model's pace.",
        )
        async with (
            open_scripted_upstream(self._scripts(), keep_requests=KEPT_REQUESTS) as upstream,
            open_scripted_sourcegraph() as sourcegraph,
        ):
            sourcegraph.users[self._user_token] = ScriptedUser(1, username="demo-user")
            settings = load_settings(self._environ(upstream.url, sourcegraph.url))
            started = time.perf_counter()
            async with open_service(settings) as service:
                self._events_folder = service.events_folder
                self._show_start(service, upstream, sourcegraph, time.perf_counter() - started)
                await self._show_answer(service)
                await self._show_overhead(service, upstream)
                self._show_snippets(service)
                await _wait_settled(service)
                # Read after the last of the tour's own events: only later ones count as served to the visitor.
                self._tour_events = await trio.to_thread.run_sync(count_completions, service.events_folder)
                self._is_complete = True
                if not self._once:
                    self._show_serving(service)
                    # From here on the visitor's requests are logged.
                    with _open_log("INFO"):
                        await trio.sleep_forever()

    def _scripts(self) -> dict[str, Script]:
        paced = Script(
            tokens_per_second=TOKENS_PER_SECOND,
            first_token_delay_seconds=FIRST_TOKEN_SECONDS,
            api_key=self._upstream_key,
        )
        # The overhead is measured without pacing, so that a delay of the script is not part of it.
        at_once = Script(answer="At once.", tokens_per_second=0, api_key=self._upstream_key)
        return {"*": paced, MEASURED_MODEL: at_once}

    def _environ(self, upstream_url: str, sourcegraph_url: str) -> dict[str, str]:
        actors_path = self._directory / "actors.toml"
        actors_path.write_text(self._actors.build_file())
        return {
            # 0 lets the kernel choose a free port.
            "PORT": str(self._port),
            "CODY_GATEWAY_HOST": HOST,
            "CODY_GATEWAY_ANTHROPIC_API_URL": upstream_url,
            "CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN": self._upstream_key,
            "CODY_GATEWAY_OPENAI_API_URL": upstream_url,
            "CODY_GATEWAY_OPENAI_ACCESS_TOKEN": self._upstream_key,
            "CODY_GATEWAY_ACTORS_FILE": str(actors_path),
            "CODY_GATEWAY_DOTCOM_API_URL": sourcegraph_url,
            "CODY_GATEWAY_DOTCOM_ACCESS_TOKEN": SERVICE_TOKEN,
            "CODY_GATEWAY_DATA_DIR": str(self._directory / "data"),
        }

    def _show_start(
        self, service: Service, upstream: ScriptedUpstream, sourcegraph: ScriptedSourcegraph, seconds: float
    ) -> None:
        self._screen.show_section("Started")
        gateway = f"{service.url}  (up in {seconds:.2f} s, embedded store included)"
        self._screen.show_facts(
            [
                ("gateway", gateway),
                ("scripted upstream", f"{upstream.url}  ({TOKENS_PER_SECOND} tokens a second)"),
                ("scripted Sourcegraph.com", f"{sourcegraph.url}  (knows one user)"),
                ("data folder", f"{self._directory}  (removed at the end)"),
            ]
        )
        if self._port == 0:
            self._screen.say(f"Port {DEFAULT_PORT} is taken by another program: the gateway has a free one instead.")

    async def _show_answer(self, service: Service) -> None:
        screen = self._screen
        screen.show_section("A streaming answer, as it arrives")
        screen.say(f'POST {ROUTE} as the actor "{self._actors.shown_id}": {QUESTION}', "dim")
        async with open_tour_client(service.url) as client:
            target = self._target(service.url, self._actors.shown_token, CLAUDE)
            started = time.perf_counter()
            await client.send(target.path, target.headers, target.body)
            head = await client.receive_head()
            arrivals = await self._show_tokens(client)
            ended = time.perf_counter()
        if not arrivals:
            raise RequestFailed("the response has no tokens")
        first, gap = _in_ms(arrivals[0] - started), _in_ms(_longest_gap(arrivals))
        screen.say(
            f"{len(arrivals)} tokens in {ended - started:.2f} s: the first after {first} (the script waits "
            f"{_in_ms(FIRST_TOKEN_SECONDS)} before it), the longest gap {gap}.",
            "dim",
        )
        self._show_limits(head)
        # No wait: the gateway commits the event before it sends the last byte, which has been received above.
        event = await trio.to_thread.run_sync(read_last_completion, service.events_folder, self._actors.shown_id)
        if event is None:
            raise RequestFailed("the response is complete, but its usage event is not in the event log")
        self._show_event(event)

    async def _show_tokens(self, client: TourClient) -> list[float]:
        parser, wrapper, arrivals = FrameParser(), self._screen.begin_text(), []
        while chunk := await client.receive_chunk():
            # Before parsing and printing, so that a slow terminal does not look like a slow gateway.
            now = time.perf_counter()
            for frame in parser.feed(chunk):
                if frame.event == b"content_block_delta":
                    arrivals.append(now)
                    self._screen.show_token(wrapper, json.loads(frame.data)["delta"]["text"])
        self._screen.end_text()
        return arrivals

    def _show_limits(self, head: ResponseHead) -> None:
        self._screen.show_section("What its headers say of the actor's limit")
        values = ((name, head.header(name.encode("ascii"))) for name in SHOWN_HEADERS)
        self._screen.show_facts([(name, value.decode("latin-1")) for name, value in values if value is not None])

    def _show_event(self, event: EventLine) -> None:
        self._screen.show_section("The usage event, committed before the answer's last byte was released")
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
        direct = TourRequest(upstream.url, "/v1/messages", headers, through.body)
        # Both requests have the same body; only path and key differ.
        overhead = await measure_overhead(through, direct, rounds=MEASURED_ROUNDS)
        self._screen.say(_describe_overhead(overhead))

    def _target(self, url: str, token: str, model: str) -> TourRequest:
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
        return TourRequest(url, ROUTE, headers, json.dumps(body).encode())

    def _show_snippets(self, service: Service) -> None:
        self._screen.show_section("Try it yourself")
        for snippet in build_snippets(service.url, self._actors.shown_token, self._user_token):
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


def _describe_overhead(overhead: Overhead) -> str:
    added, through, direct = (
        f"{seconds * 1000:.2f} ms"
        for seconds in (overhead.added_seconds, overhead.through_seconds, overhead.direct_seconds)
    )
    return (
        f"{added}: the first byte of a body takes {through} through cgw and {direct} straight from the upstream. "
        f"Medians of {overhead.rounds} requests each way, in turn, on warm connections, to a script that answers at "
        "once; client, gateway and upstream share this one process, so their work is in it too."
    )
