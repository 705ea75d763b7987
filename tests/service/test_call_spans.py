"""Spans of the gateway's own calls: whose trace they are in."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from cgw.telemetry.current_request import served_trace
from cgw.telemetry.masking import SecretMask
from cgw.telemetry.settings import OtlpSettings, TraceSettings
from cgw.telemetry.slack import SlackPostFailed, open_slack_webhook
from cgw.telemetry.traces import open_tracing
from cgw.testing.scripted_sourcegraph import ScriptedUser, open_scripted_sourcegraph
from tests.support.collectors import open_receiver, read_attributes
from tests.support.sourcegraph_gateway import open_dotcom_gateway
from tests.support.sources import user_token


async def test_a_call_to_sourcegraph_is_in_the_trace_of_its_request(tmp_path: Path) -> None:
    """Checking a new token is a span below the request that brought it; the listing of a sync is not below one."""
    token = user_token("alice")
    with open_receiver() as collector:
        async with open_scripted_sourcegraph() as sourcegraph:
            sourcegraph.users[token] = ScriptedUser(7)
            more = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
            async with (
                open_dotcom_gateway(tmp_path, sourcegraph, more) as gateway,
                httpx.AsyncClient(base_url=gateway.url, timeout=30) as client,
            ):
                headers = {"authorization": f"Bearer {token}"}
                first = await client.get("/v1/limits", headers=headers)
                second = await client.get("/v1/limits", headers=headers)
            assert (first.status_code, second.status_code) == (200, 200)
        spans = collector.spans()
        calls = [span for span in spans if span.name == "GraphQL: CheckDotcomUserAccessToken"]
        assert len(calls) == sourcegraph.counts["CheckDotcomUserAccessToken"] >= 1
        (root,) = [
            span for span in spans if span.trace_id.hex() == first.headers["x-trace"] and not span.parent_span_id
        ]
        below = [span for span in calls if span.trace_id == root.trace_id]
        assert [span.parent_span_id for span in below] == [root.span_id]
        assert read_attributes(below[0].attributes)["server.address"] == "127.0.0.1"
        assert all(token.encode() not in post.body for post in collector.posts)
        listings = [span for span in spans if span.name == "GraphQL: ListProductSubscriptions"]
        assert all(span.parent_span_id == b"" for span in listings)


async def test_a_failed_webhook_is_a_span_with_an_error() -> None:
    """A webhook that refuses has one span, without the webhook's path."""
    with open_receiver() as collector, open_receiver() as slack:
        slack.status = 404
        settings, otlp = TraceSettings(), OtlpSettings(endpoint=collector.url)
        async with open_tracing(settings, otlp, environment="test", mask=SecretMask()) as tracing:
            assert tracing is not None
            served_trace.set(None)
            async with open_slack_webhook(f"{slack.url}/services/x7canary", tracer=tracing.calls) as webhook:
                with pytest.raises(SlackPostFailed):
                    await webhook.post({"text": "x"})
        (span,) = collector.spans()
        assert span.name == "Slack webhook"
        assert span.status.message == "the Slack webhook at 127.0.0.1 answered 404"
        assert all(b"x7canary" not in post.body for post in collector.posts)
