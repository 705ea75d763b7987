"""Notices about quotas: what they say, and that nobody waits for them."""

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

from cgw.errors import CgwError
from cgw.limits.alerts import (
    MAX_WAITING,
    NOTIFIED_SOURCES,
    SUBSCRIPTION_SOURCE,
    Notice,
    Notifier,
    build_message,
    describe_notice,
)
from cgw.model import Actor, Feature, LimitUnit
from cgw.telemetry.slack import open_slack_webhook
from tests.support.raw_server import open_raw_server, read_request

DOTCOM = "https://sourcegraph.com/.api/graphql"
AT = datetime(2026, 11, 23, 22, 30, 15, 250_000, tzinfo=UTC)
ACTOR = Actor(id="acme", name="Acme Inc.", source="static", access_enabled=True)
NOTICE = Notice(ACTOR, Feature.CHAT_COMPLETIONS, 90, 1000, LimitUnit.REQUESTS, 5_400_000, AT)


def about(actor_id: str, name: str = "", source: str = "static") -> Notice:
    return evolve(NOTICE, actor=Actor(id=actor_id, name=name, source=source, access_enabled=True))


def read_block(message: dict[str, Any]) -> str:
    (block,) = message["blocks"]
    assert block["type"] == "section"
    assert block["text"]["type"] == "mrkdwn"
    assert block["text"]["verbatim"] is True
    text: str = block["text"]["text"]
    return text


@define
class Deliveries:
    """Where messages go, slowly or not at all, as the test says."""

    seconds: float = 0.0
    error: Exception | None = None
    delivered: list[str] = field(factory=list)

    async def send(self, message: dict[str, Any]) -> None:
        await trio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.delivered.append(message["text"].split("`")[1])


class WebhookBroken(CgwError):
    """A failure that has a sentence."""


# --- what is said ----------------------------------------------------------------------------------------------------


def test_message_says_who_how_much_and_until_when() -> None:
    """Both the blocks and their stand-in have the actor with source, the share, the feature and the reset (§10)."""
    message = build_message(NOTICE, DOTCOM)
    text = (
        "The actor `acme` (Acme Inc.) (source `static`) exceeded *90%* of its quota of 1000 requests for "
        "`chat_completions`. The quota resets in `1h30m` at `2026-11-24T00:00:15Z`."
    )
    assert read_block(message) == message["text"] == text
    assert message["parse"] == "none"


def test_log_line_has_the_same_facts() -> None:
    """What is logged is the message without its markup."""
    assert describe_notice(evolve(NOTICE, unit=LimitUnit.TOKENS, threshold=100)) == (
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
    notice = about("d3d2b638-d0a2", "Acme & Sons", SUBSCRIPTION_SOURCE)
    link = f"<{base}/site-admin/dotcom/product/subscriptions/d3d2b638-d0a2|Acme &amp; Sons>"
    message = build_message(notice, dotcom_url)
    assert read_block(message).startswith(f"The actor {link} (source `dotcom-product-subscriptions`) exceeded ")
    assert message["text"].startswith("The actor `d3d2b638-d0a2` (Acme &amp; Sons) (source ")


def test_actor_without_name_is_shown_by_its_id() -> None:
    """The id stands where no name is known, as the text of the link too."""
    assert read_block(build_message(about("acme"), DOTCOM)).startswith("The actor `acme` (source `static`) ")
    linked = read_block(build_message(about("a1-b2", " ", SUBSCRIPTION_SOURCE), DOTCOM))
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
def test_names_are_shown_as_they_are(name: str, shown: str) -> None:
    """A name makes no mention, link, style, emoji or line of its own."""
    assert f"`acme` ({shown}) (source" in read_block(build_message(about("acme", name), DOTCOM))


@given(st.text(max_size=400), st.text(max_size=400), st.sampled_from([*sorted(NOTIFIED_SOURCES), "<!here>"]))
def test_nothing_in_an_actor_is_markup(actor_id: str, name: str, source: str) -> None:
    """Whatever an actor is called, the message has our own markup alone, fits a block, and is valid JSON."""
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
def test_reset_is_told_in_whole_seconds(reset_ms: int, expected: tuple[str, str]) -> None:
    """Part of a second counts as one; intervals beyond the calendar end with it."""
    text = read_block(build_message(evolve(NOTICE, reset_ms=reset_ms), DOTCOM))
    assert text.endswith(f" resets in `{expected[0]}` at `{expected[1]}`.")


def test_times_are_told_in_utc() -> None:
    """A time of another zone is the same moment in UTC."""
    at = AT.astimezone(timezone(timedelta(hours=9)))
    assert build_message(evolve(NOTICE, at=at), DOTCOM) == build_message(NOTICE, DOTCOM)


# --- how it is passed on ---------------------------------------------------------------------------------------------


async def test_notices_go_out_in_order_and_nobody_waits(autojump_clock: trio.testing.MockClock) -> None:
    """However slow the other side is, notify() returns at once, and the notices arrive one after the other."""
    deliveries = Deliveries(seconds=60)
    notifier = Notifier(deliveries.send, DOTCOM)
    ids = [f"a{number}" for number in range(5)]
    notifier.notify(about("early"))
    async with trio.open_nursery() as service_nursery:
        service_nursery.start_soon(notifier.run)
        await trio.testing.wait_all_tasks_blocked()
        for actor_id in ids:
            notifier.notify(about(actor_id))
        assert trio.current_time() == 0
        await trio.sleep(6 * 60 + 1)
        assert deliveries.delivered == ["early", *ids]
        notifier.notify(about("late"))
        await trio.sleep(61)
        service_nursery.cancel_scope.cancel()
    assert deliveries.delivered[-1] == "late"
    statistics = notifier.statistics()
    assert (statistics.sent, statistics.failed, statistics.dropped, statistics.waiting) == (7, 0, 0, 0)


@pytest.mark.parametrize("error", [WebhookBroken("no_service"), KeyError("x")], ids=["expected", "unexpected"])
async def test_failure_is_logged_with_the_facts(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """A notice that could not be delivered is in the log at least; the next one is tried nevertheless."""
    deliveries = Deliveries(error=error)
    notifier = Notifier(deliveries.send, DOTCOM)
    async with trio.open_nursery() as service_nursery:
        service_nursery.start_soon(notifier.run)
        notifier.notify(NOTICE)
        await trio.sleep(1)
        deliveries.error = None
        notifier.notify(about("next"))
        await trio.sleep(1)
        service_nursery.cancel_scope.cancel()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert describe_notice(NOTICE) in record.getMessage()
    assert ("no_service" in record.getMessage()) == isinstance(error, WebhookBroken)
    assert deliveries.delivered == ["next"]
    assert (notifier.statistics().sent, notifier.statistics().failed) == (1, 1)


async def test_overflow_is_counted_and_logged_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond the bound notices are dropped, with one line in the log, until the queue has been empty."""
    deliveries = Deliveries(seconds=1)
    notifier = Notifier(deliveries.send, DOTCOM)
    async with trio.open_nursery() as service_nursery:
        service_nursery.start_soon(notifier.run)
        for _ in range(2):
            caplog.clear()
            for number in range(MAX_WAITING + 10):
                notifier.notify(about(f"a{number}"))
            assert notifier.statistics().waiting == MAX_WAITING
            assert [record.levelno for record in caplog.records] == [logging.ERROR]
            await trio.sleep(MAX_WAITING + 1)
        service_nursery.cancel_scope.cancel()
    assert notifier.statistics().sent == 2 * MAX_WAITING
    assert notifier.statistics().dropped == 20


async def test_end_drops_what_is_left(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Cancelling ends the service at once; how many notices were lost is logged, and later ones are not kept."""
    notifier = Notifier(Deliveries(seconds=600).send, DOTCOM)
    with trio.move_on_after(1):
        for number in range(3):
            notifier.notify(about(f"a{number}"))
        await notifier.run()
    assert trio.current_time() == pytest.approx(1)
    notifier.notify(NOTICE)
    assert [record.getMessage() for record in caplog.records] == ["3 usage alerts were not delivered before the end"]
    assert (notifier.statistics().dropped, notifier.statistics().waiting) == (4, 0)


async def test_quiet_end_logs_nothing(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """A service with nothing to do ends without a word."""
    with trio.move_on_after(1), caplog.at_level(logging.DEBUG):
        await Notifier(Deliveries().send, DOTCOM).run()
    assert caplog.records == []


async def test_without_webhook_the_log_is_told(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each notice is one line at INFO with the reference's words, at once, whether the service runs or not."""
    notifier = Notifier(None, DOTCOM)
    with caplog.at_level(logging.INFO, "cgw.limits"):
        notifier.notify(NOTICE)
        with trio.move_on_after(1) as service_scope:
            await notifier.run()
    assert service_scope.cancelled_caught
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.INFO, f"new usage alert: {describe_notice(NOTICE)}")
    assert notifier.statistics().sent == 1


async def test_notices_reach_slack_in_spite_of_failures(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """End to end over a real connection: a server that resets, is busy and refuses gets each notice that it takes."""
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
        notifier = Notifier(webhook.post, DOTCOM)
        async with trio.open_nursery() as service_nursery:
            service_nursery.start_soon(notifier.run)
            for number in range(3):
                notifier.notify(about(f"a{number}"))
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
