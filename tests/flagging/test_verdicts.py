"""The rules of the reference's §9.2, each at its boundary."""

from __future__ import annotations

import pytest
from attrs import evolve

from cgw.flagging.settings import FlaggingSettings
from cgw.flagging.tokens import CountQuality, TokenCount
from cgw.flagging.verdicts import Facts, Reason, cut_bytes, judge
from cgw.service.settings import load_settings

RULES = FlaggingSettings(is_blocking=True)
QUIET = Facts(is_listed_model=False, max_tokens=None, prompt_tokens=None, has_allowed_phrase=False, blocked_phrase=None)


def count(tokens: int) -> TokenCount:
    return TokenCount(tokens, CountQuality.EXACT)


def test_s9_2_no_reason_is_no_flag() -> None:
    """Nothing is known against the request."""
    assert judge(RULES, QUIET) is None


@pytest.mark.parametrize(
    ("facts", "reasons", "should_block"),
    [
        (evolve(QUIET, is_listed_model=True), [Reason.MODEL_USED], False),
        (evolve(QUIET, max_tokens=4000), [], False),
        (evolve(QUIET, max_tokens=4001), [Reason.HIGH_MAX_TOKENS, Reason.BLOCKED_PHRASE], True),
        (evolve(QUIET, prompt_tokens=count(18_000)), [], False),
        (evolve(QUIET, prompt_tokens=count(18_001)), [Reason.HIGH_PROMPT_TOKENS], False),
        (evolve(QUIET, prompt_tokens=count(20_000)), [Reason.HIGH_PROMPT_TOKENS], False),
        (evolve(QUIET, prompt_tokens=count(20_001)), [Reason.HIGH_PROMPT_TOKENS, Reason.BLOCKED_PHRASE], True),
        (evolve(QUIET, blocked_phrase="x"), [Reason.BLOCKED_PHRASE], True),
        (
            Facts(True, 5000, count(30_000), has_allowed_phrase=False, blocked_phrase="x"),
            [Reason.MODEL_USED, Reason.HIGH_MAX_TOKENS, Reason.HIGH_PROMPT_TOKENS, Reason.BLOCKED_PHRASE],
            True,
        ),
    ],
)
def test_s9_2_reasons_in_their_order(facts: Facts, reasons: list[Reason], should_block: bool) -> None:
    """All limits are strict; each blocking cause adds ``blocked_phrase``."""
    verdict = judge(RULES, facts)
    assert (list(verdict.reasons) if verdict else []) == reasons
    assert (verdict is not None and verdict.should_block) == should_block
    # Without the master switch the reasons are the same, and nothing is blocked.
    flagged = judge(evolve(RULES, is_blocking=False), facts)
    assert (list(flagged.reasons) if flagged else []) == reasons
    assert flagged is None or not flagged.should_block


def test_s9_2_an_unknown_prompt_is_flagged_if_there_is_an_allow_list() -> None:
    """It is never a reason to block."""
    rules = evolve(RULES, allowed_phrases=("you are cody",))
    verdict = judge(rules, QUIET)
    assert verdict is not None
    assert (verdict.reasons, verdict.should_block) == ((Reason.UNKNOWN_PROMPT,), False)
    assert judge(rules, evolve(QUIET, has_allowed_phrase=True)) is None


def test_s9_2_telemetry_has_a_few_bytes_only() -> None:
    """Five of the phrase, 250 of the prompt, none of them half a character."""
    verdict = judge(RULES, evolve(QUIET, blocked_phrase="ab€cd", prompt_tokens=count(3)))
    assert verdict is not None
    assert verdict.describe("é" * 200) == {
        "flagged": True,
        "flagging_result": {
            "reason": ["blocked_phrase"],
            "should_block": True,
            "blocked_phrase": "ab€",
            "prompt_prefix": "é" * 125,
            "prompt_token_count": 3,
            "prompt_token_count_quality": "exact",
        },
    }
    assert cut_bytes("a€", 3) == "a"


def test_s9_2_the_settings_and_their_defaults() -> None:
    """Names and values of the reference's table; blanks in phrases count, and no list means no rule."""
    rules = load_settings({}).flagging
    assert rules == FlaggingSettings()
    assert (rules.prompt_flagging_tokens, rules.prompt_blocking_tokens) == (18_000, 20_000)
    assert (rules.response_flagging_tokens, rules.response_blocking_tokens) == (4000, 4000)
    assert (rules.is_blocking, rules.blocked_phrases, rules.prompt_ttl_seconds) == (False, (), 3600)
    read = load_settings({"CODY_GATEWAY_ANTHROPIC_BLOCKED_PROMPT_PATTERNS": "a b, c,A"}).flagging
    assert read.blocked_phrases == ("a b", " c", "A")
