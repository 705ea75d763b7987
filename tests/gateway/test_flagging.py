"""Flagging through the whole gateway: the rules of the reference's §9.2."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from cgw.events.reading import read_events
from cgw.model import EventName
from tests.support.flagging import USER, USER_ID, open_flagging_bench
from tests.support.vocabulary import write_vocabulary

PHRASES = {"ANTHROPIC_BLOCKED_PROMPT_PATTERNS": "how to Cook,pentagram"}
BLOCKING = {**PHRASES, "ANTHROPIC_REQUEST_BLOCKING_ENABLED": "true"}
FLAGGED_PATHS = [
    "/v1/completions/anthropic-messages",
    "/anthropic/v1/messages",
    "/v1/completions/anthropic",
    "/v1/completions/openai",
    "/openai/v1/chat/completions",
    "/v1/completions/google",
]


@pytest.mark.parametrize("path", FLAGGED_PATHS)
async def test_s9_2_a_blocked_phrase_is_refused_on_every_route(tmp_path: Path, path: str) -> None:
    """400 with the text and the trace id, before the upstream is asked; a RequestBlocked event with the same id."""
    async with open_flagging_bench(tmp_path, BLOCKING) as bench:
        answer = await bench.ask("Please say HOW TO COOK it.", path=path)
        assert answer.status_code == 400
        assert "Acceptable Use Policy (https://sourcegraph.com/terms/aup)" in answer.text
        found = re.search(r"support@sourcegraph\.com and reference this ID: ([0-9a-f]{32})\"", answer.text)
        assert found is not None
        assert bench.upstream.requests == []
        (event,) = bench.read_events()
        assert (event.name, event.identifier) == (EventName.REQUEST_BLOCKED, "acme")
        assert event.metadata["trace_id"] == found[1]
        assert event.metadata["flagged"] is True
        result = event.metadata["flagging_result"]
        # The first bytes of the phrase, and of the prompt nothing: this is no user of Sourcegraph.com.
        assert (result["reason"], result["should_block"], result["blocked_phrase"]) == (
            ["blocked_phrase"],
            True,
            "how t",
        )
        assert "prompt_prefix" not in result
        assert (event.metadata["feature"], event.metadata["sg_actor_id"]) == ("chat_completions", "u1")
        assert event.metadata["model"].startswith(event.metadata["provider"] + "/")
        assert "Please" not in str(event.metadata)


@pytest.mark.parametrize(
    "prompt",
    [
        [{"type": "text", "text": "how to c"}, {"type": "text", "text": "ook"}],
        [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "How to cook"}]}],
        [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "how to cook"}}],
        "x" * 500_000 + "how to cook" + "x" * 500_000,
    ],
    ids=["split", "tool result", "document", "large"],
)
async def test_s9_2_phrases_are_found_wherever_the_model_reads_them(tmp_path: Path, prompt: Any) -> None:
    """Also across parts, in results of tools, in documents, and deep inside a large prompt."""
    async with open_flagging_bench(tmp_path, BLOCKING) as bench:
        assert (await bench.ask(prompt)).status_code == 400
        tool = {"name": "x", "description": "How to cook", "input_schema": {"type": "object"}}
        assert (await bench.ask("Hi", tools=[tool])).status_code == 400
        assert (await bench.ask("Hi", system="how TO cook")).status_code == 400
        assert (await bench.ask("how to bake")).status_code == 200


async def test_s9_2_without_the_master_switch_nothing_is_refused(tmp_path: Path) -> None:
    """The request is served, and its usage event says why it was flagged."""
    async with open_flagging_bench(tmp_path, PHRASES) as bench:
        assert (await bench.ask("How to cook")).status_code == 200
        (event,) = bench.read_events()
        assert event.name == EventName.COMPLETIONS_FINISHED
        result = event.metadata["flagging_result"]
        assert (event.metadata["flagged"], result["should_block"]) == (True, False)
        assert result["reason"] == ["blocked_phrase"]


async def test_s9_2_a_blocked_request_does_not_count(tmp_path: Path) -> None:
    """A request that is refused for its prompt is not charged."""
    async with open_flagging_bench(tmp_path, BLOCKING) as bench:
        assert (await bench.ask("How to cook")).status_code == 400
        assert (await bench.ask("How to bake")).headers["x-ratelimit-remaining"] == "999"


async def test_repeated_blocked_requests_are_one_event_with_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They count on no limit, and must not fill the disk; the log has the id of each."""
    with caplog.at_level(logging.INFO):
        async with open_flagging_bench(tmp_path, BLOCKING) as bench:
            for _ in range(5):
                assert (await bench.ask("How to cook")).status_code == 400
            folder = bench.gateway.events_folder
    events = [event for event in read_events(folder) if event.name == EventName.REQUEST_BLOCKED]
    assert sum(event.metadata["count"] for event in events) == 5
    assert len(events) < 5
    ids = re.findall(r"reference this ID: ([0-9a-f]{32})", caplog.text)
    assert len(set(ids)) == 5
    assert {event.metadata["trace_id"] for event in events} <= set(ids)


async def test_s9_2_fireworks_is_never_flagged(tmp_path: Path) -> None:
    """As in the reference: it has no settings of flagging."""
    async with open_flagging_bench(tmp_path, BLOCKING) as bench:
        assert (await bench.ask("How to cook", path="/v1/completions/fireworks")).status_code == 200
        (event,) = bench.read_events()
        assert "flagged" not in event.metadata


async def test_s9_2_without_patterns_and_below_limits_nothing_is_flagged(tmp_path: Path) -> None:
    """With the defaults, requests of usual size leave events without a mark, and nothing examines them."""
    async with open_flagging_bench(tmp_path, {}) as bench:
        assert (await bench.ask("How to cook")).status_code == 200
        (event,) = bench.read_events()
        assert "flagged" not in event.metadata


@pytest.mark.parametrize(
    ("length", "status", "reasons"),
    [
        (54_000, 200, None),
        (54_010, 200, ["high_prompt_token_count"]),
        (60_010, 400, ["high_prompt_token_count", "blocked_phrase"]),
    ],
)
async def test_s9_2_tokens_are_estimated_without_a_tokenizer(
    tmp_path: Path, length: int, status: int, reasons: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Above 18,000 flagged, above 20,000 blocked; event and log say that the figure is an estimate."""
    with caplog.at_level(logging.INFO):
        async with open_flagging_bench(tmp_path, {"ANTHROPIC_REQUEST_BLOCKING_ENABLED": "true"}) as bench:
            text = "x" * (length - len("Human: \n\n"))
            for _ in range(2):
                assert (await bench.ask(text)).status_code == status
            # Not for other providers, as in the reference.
            assert (await bench.ask(text, path="/v1/completions/openai")).status_code == 200
            events = [event for event in bench.read_events() if event.metadata["provider"] == "anthropic"]
            assert events
            for event in events:
                result = event.metadata.get("flagging_result")
                assert (None if result is None else result["reason"]) == reasons
                assert result is None or result["prompt_token_count_quality"] == "estimated"
    lines = [record for record in caplog.records if "are estimated from their characters" in record.getMessage()]
    assert [line.levelno for line in lines] == [logging.WARNING]


async def test_s11_3_tokens_are_counted_with_a_vocabulary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From the file that the setting names; for a large prompt as well, which is counted in a thread."""
    settings = {
        "TOKENIZER_FILE": str(write_vocabulary(tmp_path / "small.tiktoken")),
        "ANTHROPIC_REQUEST_BLOCKING_ENABLED": "true",
        "ANTHROPIC_PROMPT_TOKEN_FLAGGING_LIMIT": "100",
    }
    with caplog.at_level(logging.INFO):
        async with open_flagging_bench(tmp_path, settings) as bench:
            # One token for each of these words, where an estimate would have more than one.
            assert (await bench.ask(" the" * 200)).status_code == 200
            assert (await bench.ask(" the" * 250_000)).status_code == 400
            flagged, blocked = [event.metadata["flagging_result"] for event in bench.read_events()]
    assert (flagged["reason"], flagged["prompt_token_count_quality"]) == (["high_prompt_token_count"], "exact")
    assert 200 < flagged["prompt_token_count"] < 215  # with the label and the end
    assert (blocked["should_block"], blocked["prompt_token_count_quality"]) == (True, "at_least")
    assert "are estimated" not in caplog.text


@pytest.mark.parametrize(("most", "status"), [(4000, 200), (4001, 400)])
@pytest.mark.parametrize("path", ["/anthropic/v1/messages", "/v1/completions/openai"])
async def test_s9_2_requested_tokens_above_the_limit_are_blocked(
    tmp_path: Path, path: str, most: int, status: int
) -> None:
    """Strictly above it, with both reasons."""
    async with open_flagging_bench(tmp_path, {"ANTHROPIC_REQUEST_BLOCKING_ENABLED": "true"}) as bench:
        assert (await bench.ask("Hi", path=path, max_tokens=most)).status_code == status
        (event,) = bench.read_events()
        if status == 400:
            assert event.metadata["flagging_result"]["reason"] == ["high_max_tokens_to_sample", "blocked_phrase"]
            assert event.metadata["max_tokens_to_sample"] == most


async def test_s9_2_prompts_of_users_are_told_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The event has the first 250 bytes, Redis the prompt; the log has neither, nor does any other key."""
    prompt = "How to cook. CANARY " + "é" * 300
    async with open_flagging_bench(tmp_path, BLOCKING) as bench:
        with caplog.at_level(logging.DEBUG):
            answer = await bench.ask(prompt, token=USER)
            # As in the reference: too many to look into.
            code = await bench.ask(prompt, token=USER, feature="code_completions")
        assert (answer.status_code, code.status_code) == (400, 400)
        events = bench.read_events()
        prefix = events[0].metadata["flagging_result"]["prompt_prefix"]
        assert prefix.startswith("Human: How to cook. CANARY é")
        assert 249 <= len(prefix.encode()) <= 250
        recorder = bench.gateway.gateway.flagger.recorder
        (name,) = await recorder.list_names()
        assert (name.trace_id, name.feature, name.actor_id) == (
            events[0].metadata["trace_id"],
            "chat_completions",
            USER_ID,
        )
        assert await recorder.read(name) == f"Human: {prompt}\n\n".encode()
        ttl = await bench.gateway.redis.execute_command("PTTL", f"cgw:{{prompts}}:{name}")
        assert 0 < ttl <= 3_600_000
    assert "CANARY" not in caplog.text


@pytest.mark.parametrize(("ids", "is_told"), [(USER_ID, True), ("8,acme", False)])
async def test_s13_2_full_prompts_of_listed_users_are_in_events(tmp_path: Path, ids: str, is_told: bool) -> None:
    """Only of users of Sourcegraph.com that are listed, whether flagged or not."""
    async with open_flagging_bench(tmp_path, {"IDENTIFIERS_TO_LOG_FOR": ids}) as bench:
        assert (await bench.ask("Hello", token=USER)).status_code == 200
        assert (await bench.ask("Hello")).status_code == 200
        prompts = {event.identifier: event.metadata.get("full_prompt") for event in bench.read_events()}
        assert prompts == {USER_ID: "Human: Hello\n\n" if is_told else None, "acme": None}
