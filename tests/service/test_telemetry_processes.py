"""Traces and error reports of ``cgw serve`` as operators run it: one id everywhere, and receivers that misbehave."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from cgw import __version__
from cgw.events.reading import read_events
from cgw.telemetry import metrics_push, sentry, traces
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from tests.support.collectors import Receiver, open_receiver, read_attributes
from tests.support.exchange_records import CALLER
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, OPENAI_KEY, OPENAI_MODEL, TOKEN, build_environ
from tests.support.process import open_gateway_process
from tests.support.requests import HEADERS, build_body

PATH = "/v1/completions/anthropic-messages"
FAILING_PATH = "/v1/completions/openai"
PROMPT = "CANARY-PROMPT"
CALLERS_CONTEXT = {
    "traceparent": f"00-{CALLER.trace_id}-{CALLER.span_id}-01",
    "x-cloud-trace-context": "ab" * 16 + "/1;o=1",
}
COMMON = {"OTEL_EXPORTER_OTLP_TIMEOUT": "2s", "CODY_GATEWAY_LOG_FORMAT": "json", "CODY_GATEWAY_ENVIRONMENT": "staging"}


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """An upstream with one model that answers at once, and one that fails, and repeats the prompt."""
    scripts = {
        ANTHROPIC_MODEL: Script(answer="Good day.", tokens_per_second=math.inf, api_key=ANTHROPIC_KEY),
        OPENAI_MODEL: Script(status=503, error_message=f"no: {PROMPT}", api_key=OPENAI_KEY),
    }
    async with open_scripted_upstream(scripts) as upstream:
        yield upstream


def build_telemetry(collector: Receiver, reports: Receiver) -> dict[str, str]:
    """Return the settings of both receivers."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "SENTRY_DSN": reports.url.replace("http://", "http://canarykey01234@") + "/42",
        **COMMON,
    }


async def ask(url: str, path: str) -> httpx.Response:
    """Send one request, with the context of a caller."""
    body = build_body(path, messages=[{"role": "user", "content": PROMPT}])
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        return await client.post(path, json=body, headers={**HEADERS, **CALLERS_CONTEXT})


async def test_one_trace_is_in_answer_log_event_spans_and_report(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """The id that the client is told is that of spans, usage event and report; the caller's is a link of the root."""
    with open_receiver() as collector, open_receiver() as reports:
        environ = build_environ(tmp_path, upstream.url, more=build_telemetry(collector, reports))
        async with open_gateway_process(environ, tmp_path / "log") as gateway:
            good = await ask(gateway.url, PATH)
            bad = await ask(gateway.url, FAILING_PATH)
            gateway.terminate()
            assert await gateway.wait() == 0
        assert (good.status_code, bad.status_code) == (200, 503)
        log = (tmp_path / "log").read_text()
        assert f"traces go to {collector.url.rpartition(':')[0]} (CODY_GATEWAY_TRACE_POLICY=all)" in log
        assert "errors are reported to Sentry at 127.0.0.1" in log
        ids = [answer.headers["x-trace"] for answer in (good, bad)]
        roots = {span.trace_id.hex(): span for span in collector.spans() if not span.parent_span_id}
        assert list(roots) == ids
        for answer in (good, bad):
            root = roots[answer.headers["x-trace"]]
            assert root.span_id.hex() == answer.headers["x-trace-span"]
            (link,) = root.links
            assert (link.trace_id.hex(), link.span_id.hex()) == (CALLER.trace_id, CALLER.span_id)
        assert [event.metadata["trace_id"] for event in read_events(tmp_path / "events")] == ids
        names = [span.name for span in collector.spans() if span.trace_id.hex() == ids[0]]
        assert names[1:] == [
            *("authenticate", "receive", "prepare", "admit", "connect", "first byte", "relay", "record", "settle")
        ]
        attributes = read_attributes(roots[ids[0]].attributes)
        assert attributes["gen_ai.request.model"] == ANTHROPIC_MODEL
        assert attributes["gen_ai.usage.output_tokens"] > 0
        (event,) = reports.events()
        assert (event["tags"]["trace_id"], event["contexts"]["trace"]["trace_id"]) == (ids[1], ids[1])
        assert (event["release"], event["environment"]) == (f"cgw@{__version__}", "staging")
        assert event["tags"]["provider"] == "openai"
        for post in (*collector.posts, *reports.posts):
            for secret in (PROMPT, TOKEN, ANTHROPIC_KEY, OPENAI_KEY):
                assert secret.encode() not in post.body, post.path


async def test_the_end_comes_after_the_last_report(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """SIGTERM right after a burst of answers: each has its line and its trace, though they are reported together."""
    ids: list[str] = []
    with open_receiver() as collector, open_receiver() as reports:
        environ = build_environ(tmp_path, upstream.url, more=build_telemetry(collector, reports))
        async with open_gateway_process(environ, tmp_path / "log") as gateway:

            async def ask_once(client: httpx.AsyncClient) -> None:
                ids.append((await client.post(PATH, json=build_body(PATH))).headers["x-trace"])

            async with (
                httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=60) as client,
                trio.open_nursery() as nursery,
            ):
                for _ in range(40):
                    nursery.start_soon(ask_once, client)
            gateway.terminate()
            assert await gateway.wait() == 0
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        logged = [line["request_id"] for line in lines if line["logger"] == "cgw.exchange"]
        traced = [span.trace_id.hex() for span in collector.spans() if not span.parent_span_id]
        assert sorted(logged) == sorted(traced) == sorted(ids)
        assert logged == traced  # in one order
        assert lines[-1]["message"] == "ended"
        ends = [line["time"] for line in lines if line["logger"] == "cgw.exchange"]
        assert ends == sorted(ends)


@pytest.mark.parametrize("is_on", [False, True])
async def test_trace_context_reaches_providers_only_where_it_is_wanted(
    tmp_path: Path, upstream: ScriptedUpstream, is_on: bool
) -> None:
    """The caller's context never does; cgw's own, with the root span as parent, does with the setting."""
    with open_receiver() as collector, open_receiver() as reports:
        more = {**build_telemetry(collector, reports), "CODY_GATEWAY_PROPAGATE_TRACES": str(is_on)}
        async with open_gateway_process(build_environ(tmp_path, upstream.url, more=more), tmp_path / "log") as gateway:
            answer = await ask(gateway.url, PATH)
        (request,) = upstream.requests
        sent = {name: value for name, value in request.headers if b"trace" in name}
        trace, span = answer.headers["x-trace"], answer.headers["x-trace-span"]
        assert sent == ({b"traceparent": f"00-{trace}-{span}-01".encode()} if is_on else {})


def has_paths(receiver: Receiver, paths: set[str]) -> bool:
    """Return whether each of ``paths`` was posted to."""
    return paths <= {post.path for post in receiver.posts}


async def test_receivers_that_misbehave_do_not_keep_the_process(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """With a slow, hanging, refusing or dead collector, Sentry and webhook all is served, and SIGTERM ends it."""
    async with trio.open_nursery() as nursery:  # at the same time: they mostly wait
        for kind in ("slow", "hangs", "refuses", "dead"):
            (tmp_path / kind).mkdir()
            nursery.start_soon(serve_beside_receiver, tmp_path / kind, upstream, kind)


async def serve_beside_receiver(tmp_path: Path, upstream: ScriptedUpstream, kind: str) -> None:
    """Run a process whose receivers misbehave in one way to its end."""
    with open_receiver() as receiver:
        receiver.hangs, receiver.status = kind == "hangs", 200 if kind == "slow" else 503
        receiver.delay_seconds = 1.0
        target = Receiver("http://127.0.0.1:9") if kind == "dead" else receiver
        more = {
            **build_telemetry(target, target),
            "CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_SLACK_WEBHOOK_URL": f"{target.url}/services/x",
            "CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_THRESHOLDS": "1",
        }
        environ = build_environ(tmp_path, upstream.url, more=more)
        async with open_gateway_process(environ, tmp_path / "log") as gateway:
            paths = (PATH, FAILING_PATH) * 10
            statuses = [(await ask(gateway.url, path)).status_code for path in paths]
            assert statuses == [200, 503] * 10
            if kind != "dead":
                called = {"/api/42/envelope/", "/services/x", "/v1/traces"}
                is_called = partial(has_paths, receiver, called)
                await trio.to_thread.run_sync(receiver.wait_for, is_called)
            started = trio.current_time()
            gateway.terminate()
            assert await gateway.wait(seconds=60) == 0
            # Besides the drain, which has nothing to wait for; generous, because the machine may be busy.
            assert (
                trio.current_time() - started
                < traces.FLUSH_SECONDS + metrics_push.FLUSH_SECONDS + sentry.FLUSH_SECONDS + 15
            )
        assert "Traceback" not in (tmp_path / "log").read_text()
        text = (tmp_path / "log").read_text()
        assert "canarykey" not in text
        # Once for traces, and once for metrics.
        assert text.count("what cannot be exported is dropped and counted") <= 2


CRASH = """
import sys
from cgw.service import run
from cgw.service.settings import load_settings

def open_service(settings, *others):
    raise TypeError("a bug at the start")

run.open_service = open_service
run.run_service(load_settings({"SENTRY_DSN": sys.argv[1]}))
"""


async def test_a_crash_of_the_service_is_reported() -> None:
    """What ends the process as an exception reaches Sentry before it ends, with its text and place."""
    with open_receiver() as reports:
        dsn = build_telemetry(reports, reports)["SENTRY_DSN"]
        result = await trio.run_process([sys.executable, "-c", CRASH, dsn], check=False, capture_stderr=True)
        assert result.returncode == 1
        assert b"a bug at the start" in result.stderr
        (event,) = reports.events()
        assert (event["level"], event["tags"]["cause"]) == ("fatal", "crash")
        assert event["exception"]["values"][-1]["value"] == "a bug at the start"
