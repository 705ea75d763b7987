"""Usage alerts: their text, and a delivery that delays no request."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st

from cgw.actors.policies import POLICIES, PRODUCT_SUBSCRIPTION
from cgw.errors import CgwError
from cgw.limits.alert_messages import UsageAlert, build_message, describe_alert
from cgw.limits.alerts import MAX_WAITING, AlertQueue
from cgw.model import NEUTRAL_POLICY, Actor, Feature, LimitUnit
from cgw.telemetry.slack import open_slack_webhook
from tests.support.raw_server import open_raw_server, read_request

DOTCOM = "https://sourcegraph.com/.api/graphql"
AT = datetime(2026, 11, 23, 22, 30, 15, 250_000, tzinfo=UTC)
ACTOR = Actor(id="acme", name="Acme Inc.", source="static", access_enabled=True)
ALERT = UsageAlert(ACTOR, Feature.CHAT_COMPLETIONS, 90, 1000, LimitUnit.REQUESTS, 5_400_000, AT)


def about(actor_id: str, name: str = "", source: str = "static") -> UsageAlert:
    policy = POLICIES.get(source, NEUTRAL_POLICY)
    return evolve(ALERT, actor=Actor(id=actor_id, name=name, source=source, access_enabled=True, policy=policy))


def read_block(message: dict[str, Any]) -> str:
    (block,) = message["blocks"]
    assert block["type"] == "section"
    assert block["text"]["type"] == "mrkdwn"
    assert block["text"]["verbatim"] is True
    text: str = block["text"]["text"]
    return text


@define
class Deliveries:
    """A delivery that takes time, or fails, as the test sets it."""

    seconds: float = 0.0
    error: Exception | None = None
    delivered: list[str] = field(factory=list)

    async def send(self, message: dict[str, Any]) -> None:
        await trio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.delivered.append(message["text"].split("`")[1])


class WebhookBroken(CgwError):
    """An expected failure."""


# --- text ----------------------------------------------------------------------------------------------------


def test_message_has_all_facts() -> None:
    """Both the blocks and the plain text have the actor with source, the share, the feature and the reset (§10)."""
    message = build_message(ALERT, DOTCOM)
    text = (
        "The actor `acme` (Acme Inc.) (source `static`) exceeded *90%* of its quota of 1000 requests for "
        "`chat_completions`. The quota resets in `1h30m` at `2026-11-24T00:00:15Z`."
    )
    assert read_block(message) == message["text"] == text
    assert message["parse"] == "none"


def test_log_line_has_the_same_facts() -> None:
    """The log line is the message without its markup."""
    assert describe_alert(evolve(ALERT, unit=LimitUnit.TOKENS, threshold=100)) == (
        "actor acme (Acme Inc.) from static exceeded 100% of its quota of 1000 tokens for chat_completions; "
        "it resets in 1h30m at 2026-11-24T00:00:15Z"
    )


@pytest.mark.parametrize(
    ("dotcom_url", "base"),
    [
        (DOTCOM, "https://sourcegraph.com"),
        ("http://sourcegraph.test:3443/a/b", "http://sourcegraph.test:3443"),
        ("https://[::1]:3443", "https://[::1]:3443"),
    ],
)
def test_product_subscriptions_are_linked(dotcom_url: str, base: str) -> None:
    """The name links to the subscription's page: the API's URL without its path, and the id (§10)."""
    alert = about("d3d2b638-d0a2", "Acme & Sons", PRODUCT_SUBSCRIPTION)
    link = f"<{base}/site-admin/dotcom/product/subscriptions/d3d2b638-d0a2|Acme &amp; Sons>"
    message = build_message(alert, dotcom_url)
    assert read_block(message).startswith(f"The actor {link} (source `dotcom-product-subscriptions`) exceeded ")
    assert message["text"].startswith("The actor `d3d2b638-d0a2` (Acme &amp; Sons) (source ")


def test_actor_without_name_is_shown_by_its_id() -> None:
    """Without a name the id is shown, also as the text of the link."""
    assert read_block(build_message(about("acme"), DOTCOM)).startswith("The actor `acme` (source `static`) ")
    linked = read_block(build_message(about("a1-b2", " ", PRODUCT_SUBSCRIPTION), DOTCOM))
    assert "/subscriptions/a1-b2|a1-b2> (source" in linked


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<!channel>", "&lt;!channel&gt;"),
        ("@channel", "@\u2060channel"),
        ("<https://evil.test|click>", "&lt;https:\u2060//evil.test\u2223click&gt;"),
        ("*bold* _it_ ~no~ `x`", "\u2217bold\u2217 \u02cdit\u02cd \u223cno\u223c \u02cbx\u02cb"),
        ("a\n> quote\r\n\u202eb\x00", "a &gt; quote b"),
        (":tada: #general", ":\u2060tada:\u2060 #\u2060general"),
        ("&lt;", "&amp;lt;"),
        ("x" * 300, "x" * 200 + "…"),
        ("Ünï 李", "Ünï 李"),
    ],
)
def test_names_are_shown_literally(name: str, shown: str) -> None:
    """A name cannot make a mention, link, style, emoji or line."""
    assert f"`acme` ({shown}) (source" in read_block(build_message(about("acme", name), DOTCOM))


@given(st.text(max_size=400), st.text(max_size=400), st.sampled_from([*POLICIES, "<!here>"]))
def test_nothing_in_an_actor_is_markup(actor_id: str, name: str, source: str) -> None:
    """For any id and name, the message has only our own markup, fits a block, and is valid JSON."""
    message = build_message(about(actor_id, name, source), DOTCOM)
    for text in (read_block(message), message["text"]):
        assert text.isprintable() or "\u2060" in text
        assert text.splitlines() == [text]
        assert len(text) <= 3000
        assert not re.search(r"&(?!amp;|lt;|gt;)", text)
        links = re.findall("<[^>]*>", text)
        assert len(links) == text.count("<") == text.count(">") <= 1
        assert all(link.startswith("<https://sourcegraph.com/site-admin/") for link in links)
        assert all(link.count("|") == 1 for link in links)
        outside_code = re.sub(r"`[^`]*`|<[^|>]*\|", "", text)
        assert "`" not in outside_code
        assert outside_code.count("*") == 2
        assert not re.search(r"[@#][^\u2060]|[_~]", outside_code)
    json.dumps(message)


@pytest.mark.parametrize(
    ("reset_ms", "expected"),
    [
        (0, ("0s", "2026-11-23T22:30:15Z")),
        (-5, ("0s", "2026-11-23T22:30:15Z")),
        (1, ("1s", "2026-11-23T22:30:16Z")),
        (86_400_000, ("24h", "2026-11-24T22:30:15Z")),
        (2**51, ("625499948h14m46s", "9999-12-31T23:59:59Z")),
    ],
)
def test_reset_is_in_whole_seconds(reset_ms: int, expected: tuple[str, str]) -> None:
    """Part of a second counts as one; times beyond the year 9999 are cut off there."""
    text = read_block(build_message(evolve(ALERT, reset_ms=reset_ms), DOTCOM))
    assert text.endswith(f" resets in `{expected[0]}` at `{expected[1]}`.")


def test_times_are_in_utc() -> None:
    """A time of another zone is the same moment in UTC."""
    at = AT.astimezone(timezone(timedelta(hours=9)))
    assert build_message(evolve(ALERT, at=at), DOTCOM) == build_message(ALERT, DOTCOM)


# --- delivery ---------------------------------------------------------------------------------------------


async def test_alerts_are_delivered_in_order_without_waiting(autojump_clock: trio.testing.MockClock) -> None:
    """However slow Slack is, put() returns at once, and the alerts arrive one after the other."""
    deliveries = Deliveries(seconds=60)
    queue = AlertQueue(deliveries.send, DOTCOM)
    ids = [f"a{number}" for number in range(5)]
    queue.put(about("early"))
    async with trio.open_nursery() as service_nursery:
        service_nursery.start_soon(queue.run)
        await trio.testing.wait_all_tasks_blocked()
        for actor_id in ids:
            queue.put(about(actor_id))
        assert trio.current_time() == 0
        await trio.sleep(6 * 60 + 1)
        assert deliveries.delivered == ["early", *ids]
        queue.put(about("late"))
        await trio.sleep(61)
        service_nursery.cancel_scope.cancel()
    assert deliveries.delivered[-1] == "late"
    statistics = queue.statistics()
    assert (statistics.sent, statistics.failed, statistics.dropped, statistics.waiting) == (7, 0, 0, 0)


@pytest.mark.parametrize("error", [WebhookBroken("no_service"), KeyError("x")], ids=["expected", "unexpected"])
async def test_failure_is_logged_with_the_facts(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """An alert that could not be delivered is logged with its facts; the next one is tried."""
    deliveries = Deliveries(error=error)
    queue = AlertQueue(deliveries.send, DOTCOM)
    async with trio.open_nursery() as service_nursery:
        service_nursery.start_soon(queue.run)
        queue.put(ALERT)
        await trio.sleep(1)
        deliveries.error = None
        queue.put(about("next"))
        await trio.sleep(1)
        service_nursery.cancel_scope.cancel()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert describe_alert(ALERT) in record.getMessage()
    assert ("no_service" in record.getMessage()) == isinstance(error, WebhookBroken)
    assert deliveries.delivered == ["next"]
    assert (queue.statistics().sent, queue.statistics().failed) == (1, 1)


async def test_overflow_is_counted_and_logged_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond the bound alerts are dropped, with one line in the log, until the queue has been empty."""
    deliveries = Deliveries(seconds=1)
    queue = AlertQueue(deliveries.send, DOTCOM)
    async with trio.open_nursery() as service_nursery:
        service_nursery.start_soon(queue.run)
        for _ in range(2):
            caplog.clear()
            for number in range(MAX_WAITING + 10):
                queue.put(about(f"a{number}"))
            assert queue.statistics().waiting == MAX_WAITING
            assert [record.levelno for record in caplog.records] == [logging.ERROR]
            await trio.sleep(MAX_WAITING + 1)
        service_nursery.cancel_scope.cancel()
    assert queue.statistics().sent == 2 * MAX_WAITING
    assert queue.statistics().dropped == 20


async def test_end_drops_what_is_left(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Cancelling ends the worker at once; the number of lost alerts is logged, and later ones are not kept."""
    queue = AlertQueue(Deliveries(seconds=600).send, DOTCOM)
    with trio.move_on_after(1):
        for number in range(3):
            queue.put(about(f"a{number}"))
        await queue.run()
    assert trio.current_time() == pytest.approx(1)
    queue.put(ALERT)
    assert [record.getMessage() for record in caplog.records] == ["3 usage alerts were not delivered before the end"]
    assert (queue.statistics().dropped, queue.statistics().waiting) == (4, 0)


async def test_quiet_end_logs_nothing(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """A worker with nothing to do ends without a log line."""
    with trio.move_on_after(1), caplog.at_level(logging.DEBUG):
        await AlertQueue(Deliveries().send, DOTCOM).run()
    assert caplog.records == []


async def test_without_webhook_alerts_are_logged(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each alert is one line at INFO with the reference's words, at once, whether the worker runs or not."""
    queue = AlertQueue(None, DOTCOM)
    with caplog.at_level(logging.INFO, "cgw.limits"):
        queue.put(ALERT)
        with trio.move_on_after(1) as service_scope:
            await queue.run()
    assert service_scope.cancelled_caught
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.INFO, f"new usage alert: {describe_alert(ALERT)}")
    assert queue.statistics().sent == 1


async def test_alerts_reach_slack_in_spite_of_failures(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Over a real connection to a server that resets, is busy and refuses, each alert that it accepts arrives once."""
    autojump_clock.autojump_threshold = 0.01
    is_over = trio.Event()
    taken: list[str] = []
    asked: list[str] = []

    def fail(status: bytes) -> Callable[[trio.SocketStream, str], Any]:
        return lambda stream, _: stream.send_all(b"HTTP/1.1 %s\r\ncontent-length: 0\r\n\r\n" % status)

    async def take(stream: trio.SocketStream, actor_id: str) -> None:
        taken.append(actor_id)
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        if not plays:
            is_over.set()

    async def reset(stream: trio.SocketStream, actor_id: str) -> None:
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    plays = [
        *(reset, fail(b"429 Too Many Requests\r\nretry-after: 3"), take),  # a0
        fail(b"403 Forbidden"),  # a1
        *(fail(b"500 Internal Server Error"), take),  # a2
    ]

    async def serve(stream: trio.SocketStream) -> None:
        received = await read_request(stream)
        assert received is not None
        asked.append(json.loads(received[1])["text"].split("`")[1])
        await plays.pop(0)(stream, asked[-1])

    async with (
        open_raw_server(serve) as port,
        open_slack_webhook(f"http://127.0.0.1:{port}/services/canary") as webhook,
    ):
        queue = AlertQueue(webhook.post, DOTCOM)
        async with trio.open_nursery() as service_nursery:
            service_nursery.start_soon(queue.run)
            for number in range(3):
                queue.put(about(f"a{number}"))
            await is_over.wait()
            await trio.sleep(1)
            service_nursery.cancel_scope.cancel()
    assert asked == ["a0", "a0", "a0", "a1", "a2", "a2"]
    assert taken == ["a0", "a2"]
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "a usage alert was not delivered (the Slack webhook at 127.0.0.1 answered 403)"
    )
    assert "canary" not in caplog.text
