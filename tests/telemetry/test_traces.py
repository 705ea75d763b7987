"""Traces, from the record to a collector over HTTP: slow, refusing and dead ones included."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cgw.config.kinds import Secret
from cgw.errors import CgwError, ConfigError
from cgw.telemetry.call_spans import trace_call
from cgw.telemetry.current_request import served_trace
from cgw.telemetry.exchange_record import Outcome, RequestKind
from cgw.telemetry.export_thread import MAX_PENDING
from cgw.telemetry.masking import SecretMask
from cgw.telemetry.otlp_wire import MAX_TEXT_CHARACTERS
from cgw.telemetry.settings import OtlpSettings, TraceSettings
from cgw.telemetry.traces import FLUSH_SECONDS, Tracing, open_tracing
from cgw.wire.trace_context import CallerContext
from tests.support.collectors import open_receiver, read_attributes
from tests.support.exchange_records import CALLER, build_exchange, build_trace
from tests.support.google_account import write_account

NEVER_SAMPLED = CallerContext(CALLER.trace_id, CALLER.span_id, is_sampled=False)


@asynccontextmanager
async def open_traces(url: str, *, policy: str = "all", **otlp: Any) -> AsyncIterator[Tracing]:
    """Open traces to a collector at ``url``."""
    settings = TraceSettings(policy=policy)
    async with open_tracing(
        settings, OtlpSettings(endpoint=url, **otlp), environment="test", mask=SecretMask()
    ) as tracing:
        assert tracing is not None
        yield tracing


async def test_an_exchange_reaches_the_collector_with_what_the_settings_say() -> None:
    """The request has the path, key and form of OTLP over HTTP; the resource names service, version, environment."""
    with open_receiver() as receiver:
        otlp: dict[str, Any] = {
            "headers": Secret("x-key=a%20b,other=1"),
            "compression": "gzip",
            "service_name": "gateway",
            "resource_attributes": (("team", "llm"),),
        }
        record = build_exchange()
        async with open_traces(receiver.url, **otlp) as tracing:
            tracing([record])
        (post,) = receiver.posts
        assert post.path == "/v1/traces"
        assert post.headers["content-type"] == "application/x-protobuf"
        assert (post.headers["x-key"], post.headers["other"]) == ("a b", "1")
        root, *children = receiver.spans()
        assert root.trace_id.hex() == record.trace.trace_id
        assert len(children) == 9
        assert tracing.statistics().exported == 1
        (resource_spans,) = ExportTraceServiceRequest.FromString(post.body).resource_spans
        resource = read_attributes(resource_spans.resource.attributes)
        assert (resource["service.name"], resource["team"]) == ("gateway", "llm")
        assert resource["deployment.environment.name"] == "test"
        assert "gcp.project_id" not in resource


async def test_the_policy_selects_what_is_traced() -> None:
    """With selective, only what a caller samples; with none, or without a receiver, nothing is opened."""
    with open_receiver() as receiver:
        chosen = build_exchange(trace=build_trace(CALLER))
        async with open_traces(receiver.url, policy="selective") as tracing:
            tracing([build_exchange()])
            tracing([build_exchange(trace=build_trace(NEVER_SAMPLED))])
            tracing([chosen])
            with trace_call(tracing.calls, "sync"):
                pass
        assert {span.trace_id.hex() for span in receiver.spans()} == {chosen.trace.trace_id}
        endpoint = OtlpSettings(endpoint=receiver.url)
        for settings, otlp in ((TraceSettings(policy="none"), endpoint), (TraceSettings(), OtlpSettings())):
            async with open_tracing(settings, otlp, environment="test", mask=SecretMask()) as nothing:
                assert nothing is None


async def test_probes_leave_no_trace_and_what_waits_is_small() -> None:
    """A health check that succeeds has no span, one that fails has; long texts are cut before they wait."""
    with open_receiver() as receiver:
        async with open_traces(receiver.url) as tracing:
            probe = {"kind": RequestKind.CONTROL, "path": "/-/healthz", "route": None}
            tracing([build_exchange(**probe, method="OK")])
            tracing([build_exchange(**probe, method="BAD", outcome=Outcome.REFUSED, status=401)])
            tracing([build_exchange(path="/" + "x" * 60_000, user_agent="y" * 60_000, bug=ValueError())])
            waiting = list(tracing._thread._gathered)
            assert all(len(spans) < 5 * MAX_TEXT_CHARACTERS for spans in waiting)
        assert next(span.name for span in receiver.spans() if not span.parent_span_id) == "BAD"


async def test_calls_are_children_of_the_exchange_that_they_are_made_for() -> None:
    """A call has the served exchange as parent, in its own task and in those it starts; other calls are roots."""
    with open_receiver() as receiver:
        trace = build_trace()
        async with open_traces(receiver.url) as tracing:

            async def call() -> None:
                with trace_call(tracing.calls, "GraphQL: CheckAccessToken", "sourcegraph.com"):
                    await trio.lowlevel.checkpoint()

            with trace_call(tracing.calls, "sync"):
                pass
            token = served_trace.set(trace)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
            served_trace.reset(token)
            with pytest.raises(CgwError), trace_call(tracing.calls, "portal"):
                raise CgwError("the portal answered 500")
            with pytest.raises(ValueError, match="prompt"), trace_call(tracing.calls, "portal"):
                raise ValueError("a text with a prompt")
        sync, graphql, portal, bug = receiver.spans()
        assert (graphql.name, graphql.parent_span_id.hex()) == ("GraphQL: CheckAccessToken", trace.span_id)
        assert graphql.trace_id.hex() == trace.trace_id
        assert sync.parent_span_id == b""
        assert (portal.status.message, bug.status.message) == ("the portal answered 500", "ValueError")


def test_a_call_costs_nothing_without_tracing() -> None:
    """The context manager is one and the same."""
    assert trace_call(None, "a") is trace_call(None, "b")


async def test_a_collector_that_is_overloaded_is_asked_again() -> None:
    """A 503 and a connection that breaks are retried, a 400 is not; redirects are not followed."""
    with open_receiver() as receiver:
        receiver.status = 503
        async with open_traces(receiver.url) as tracing:
            tracing([build_exchange()])
            tracing._thread._bell.put(None)
            await trio.to_thread.run_sync(receiver.wait_for, lambda: len(receiver.posts) == 2)
            receiver.status = 200
        assert tracing.statistics().exported == 1
        for status in (400, 302):
            receiver.posts.clear()
            receiver.status, receiver.headers = status, {"location": receiver.url}
            async with open_traces(receiver.url) as tracing:
                tracing([build_exchange()])
            assert (len(receiver.posts), tracing.statistics().failed) == (1, 1)


@pytest.mark.parametrize("kind", ["hangs", "refuses", "dead"])
async def test_a_bad_collector_costs_a_thread_and_a_bounded_queue(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """However many exchanges there are, a bounded number waits, the others are counted, and the end is in time."""
    with open_receiver() as receiver:
        receiver.hangs, receiver.status = kind == "hangs", 503
        async with open_traces("http://127.0.0.1:9" if kind == "dead" else receiver.url) as tracing:
            threads = [thread for thread in threading.enumerate() if thread.name.startswith("cgw-export")]
            for _ in range(3 * MAX_PENDING):
                tracing([build_exchange()])
            statistics = tracing.statistics()
            assert statistics.pending <= MAX_PENDING + 512
            assert statistics.dropped + statistics.pending + statistics.failed == 3 * MAX_PENDING
            assert statistics.dropped >= MAX_PENDING - 512
            assert len([one for one in threading.enumerate() if one.name.startswith("cgw-export")]) == len(threads)
            started = time.monotonic()
        assert time.monotonic() - started < FLUSH_SECONDS + 10
    for thread in threads:  # now that the receiver has let it go
        await trio.to_thread.run_sync(thread.join, 20)
        assert not thread.is_alive()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_the_end_is_in_time_even_when_it_is_cancelled() -> None:
    """A cancellation from outside does not lose the last spans."""
    with open_receiver() as receiver:
        with trio.CancelScope() as scope:
            async with open_traces(receiver.url) as tracing:
                tracing([build_exchange()])
                scope.cancel()
        assert len(receiver.spans()) == 10


async def test_google_cloud_gets_otlp_with_a_token_of_the_default_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token comes from the service account's token server, once; the project is named in header and resource."""
    with open_receiver() as token_server, open_receiver() as google:
        token_server.answer = json.dumps({"access_token": "ya29.x", "expires_in": 3600}).encode()
        token_server.headers = {"content-type": "application/json"}
        write_account(tmp_path / "account.json", f"{token_server.url}/token")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        settings = TraceSettings(gcp_project_id="my-project")
        url = f"{google.url}/v1/traces"
        async with open_tracing(
            settings, OtlpSettings(), environment="test", mask=SecretMask(), google_url=url
        ) as tracing:
            assert tracing is not None
            tracing([build_exchange()])
            tracing._thread._bell.put(None)
            await trio.to_thread.run_sync(google.wait_for, lambda: len(google.posts) == 1)
            tracing([build_exchange()])
        assert len(token_server.posts) == 1
        assert {post.headers["authorization"] for post in google.posts} == {"Bearer ya29.x"}
        assert {post.headers["x-goog-user-project"] for post in google.posts} == {"my-project"}
        assert len(google.spans()) == 20


async def test_without_the_extra_google_cloud_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """cgw's own variable is an error that names the extra; Google's general one is not."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = TraceSettings(gcp_project_id="p")
    with pytest.raises(ConfigError, match=r"CODY_GATEWAY_OTEL_GCP_PROJECT_ID: .* install cgw\[gcp\]"):
        async with open_tracing(settings, OtlpSettings(), environment="test", mask=SecretMask()):
            pass
    settings = evolve(settings, gcp_project_id=None, google_cloud_project="p")
    async with open_tracing(settings, OtlpSettings(), environment="test", mask=SecretMask()) as tracing:
        assert tracing is None


async def test_a_signals_own_url_comes_before_google_cloud() -> None:
    """The more special setting wins: spans go to a URL that is set for traces alone, although a project is set, too."""
    with open_receiver() as collector, open_receiver() as google:
        settings = TraceSettings(gcp_project_id="my-project")
        otlp = OtlpSettings(endpoint="http://127.0.0.1:1", traces_endpoint=f"{collector.url}/spans")
        async with open_tracing(
            settings, otlp, environment="test", mask=SecretMask(), google_url=google.url
        ) as tracing:
            assert tracing is not None
            tracing([build_exchange()])
        assert [post.path for post in collector.posts] == ["/spans"]
        assert google.posts == []


def test_vendors_code_is_not_imported_before_it_is_used() -> None:
    """Importing cgw's modules imports neither httpx, nor Sentry's SDK, nor Google's."""
    code = (
        "import sys, cgw.telemetry.traces, cgw.telemetry.sentry, cgw.telemetry.call_spans\n"
        "print([name for name in ('httpx', 'sentry_sdk', 'google.auth', 'urllib3') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
