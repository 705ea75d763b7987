"""Loading the actors file, and the problems of a wrong one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cgw.actors.source import NotFromSource
from cgw.actors.static import StaticSource, load_static_actors
from cgw.actors.tokens import build_entry, hash_token, new_token
from cgw.errors import ConfigError
from cgw.model import Feature, LimitUnit, RateLimit

DAY_MS = 86_400_000
HASH = "ab" * 32
LIMITS = '[actor.limits.chat_completions]\nlimit = 100\ninterval = "24h"\n'
HEAD = f'[[actor]]\nid = "acme"\ntoken_sha256 = ["{HASH}"]\n'


def load(tmp_path: Path, text: str | bytes) -> StaticSource:
    path = tmp_path / "actors.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_static_actors(path, percentage=50, interval_ms=10_000)


def problems_of(tmp_path: Path, text: str | bytes) -> list[str]:
    """Return the problems of a file, without its path, which all must begin with."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    prefix = f"{tmp_path / 'actors.toml'}: "
    assert all(problem.startswith(prefix) for problem in caught.value.problems)
    return [problem.removeprefix(prefix) for problem in caught.value.problems]


async def test_an_entry_gives_its_actor(tmp_path: Path) -> None:
    """All keys of the documented format take effect; each listed token is the actor's."""
    source = load(
        tmp_path,
        f"""
        [[actor]]
        id = "acme"
        name = "Acme Inc."
        token_sha256 = ["{hash_token("one")}", "{hash_token("two").upper()}"]
        access_enabled = false
        max_in_flight = 20
        [actor.limits.chat_completions]
        limit = 100
        unit = "tokens"
        interval = "1h30m"
        allowed_models = ["openai/gpt-4o", "anthropic/claude-2", "openai/gpt-4o"]
        concurrent_requests = 7
        concurrent_requests_interval = "2s"
        max_in_flight = 3
        """,
    )
    actor = await source.get("one")
    assert actor is await source.get("two")
    assert (actor.id, actor.name, actor.source, actor.access_enabled) == ("acme", "Acme Inc.", "static", False)
    limit = RateLimit(100, 5_400_000, ("openai/gpt-4o", "anthropic/claude-2"), 7, 2_000, LimitUnit.TOKENS, 3)
    assert actor.rate_limits == {Feature.CHAT_COMPLETIONS: limit}
    assert source.actors == (actor,)


async def test_missing_keys_have_defaults(tmp_path: Path) -> None:
    """Access is on, all models are allowed, and the short-term rate is half the daily limit per 10 s."""
    actor = await load(tmp_path, HEAD.replace(HASH, hash_token("one")) + LIMITS).get("one")
    assert actor.access_enabled
    assert actor.display_name == "acme"
    assert actor.rate_limits == {Feature.CHAT_COMPLETIONS: RateLimit(100, DAY_MS, ("*",), 50, 10_000)}


async def test_features_have_defaults_of_their_own(tmp_path: Path) -> None:
    """Embeddings count tokens and others requests; the actor's bound in flight applies to each feature."""
    source = load(
        tmp_path,
        HEAD.replace(HASH, hash_token("one"))
        + "max_in_flight = 20\n"
        + LIMITS
        + LIMITS.replace("chat_completions", "code_completions")
        + "max_in_flight = 1000000\n"
        + LIMITS.replace("chat_completions", "embeddings"),
    )
    limits = (await source.get("one")).rate_limits
    assert {feature: (limit.unit, limit.max_in_flight) for feature, limit in limits.items()} == {
        Feature.CHAT_COMPLETIONS: (LimitUnit.REQUESTS, 20),
        Feature.CODE_COMPLETIONS: (LimitUnit.REQUESTS, 1_000_000),
        Feature.EMBEDDINGS: (LimitUnit.TOKENS, 20),
    }


async def test_embeddings_can_be_charged_by_requests(tmp_path: Path) -> None:
    """The unit in the file wins over the default of the feature."""
    limits = LIMITS.replace("chat_completions", "embeddings") + 'unit = "requests"'
    actor = await load(tmp_path, HEAD.replace(HASH, hash_token("one")) + limits).get("one")
    assert actor.rate_limits[Feature.EMBEDDINGS].unit is LimitUnit.REQUESTS


@pytest.mark.parametrize("token", ["", "three", HASH])
async def test_other_tokens_are_not_of_this_source(tmp_path: Path, token: str) -> None:
    """A token that is not listed, the empty token and a listed hash are left to other sources."""
    source = load(tmp_path, HEAD + LIMITS)
    with pytest.raises(NotFromSource):
        await source.get(token)


async def test_a_fresh_token_and_its_entry_fit_together(tmp_path: Path) -> None:
    """The entry that ``cgw token new`` prints is a valid file, and its token finds its actor."""
    token = new_token()
    name = 'Acme "Ünï" \\ Inc.'
    assert re.fullmatch(r"cgw_[0-9a-f]{64}", token)
    entry = build_entry("acme", name, hash_token(token))
    other = build_entry("other", "", hash_token(new_token()))
    actor = await load(tmp_path, f"{entry}\n{other}").get(token)
    assert (actor.id, actor.name) == ("acme", name)
    assert set(actor.rate_limits) == {Feature.CHAT_COMPLETIONS, Feature.CODE_COMPLETIONS}
    assert token not in entry


def test_all_problems_of_a_file_are_named(tmp_path: Path) -> None:
    """Every wrong key of every entry is reported with its path, all at once."""
    problems = problems_of(
        tmp_path,
        f"""
        version = 1
        [[actor]]
        id = "a b"
        nam = "x"
        token_sha256 = ["abc", 3]
        access_enabled = "yes"
        [actor.limits.chat_completion]
        limit = 1
        [actor.limits.embeddings]
        limit = 99999999999999999
        interval = "24h"
        concurrent_requests = 0
        [[actor]]
        id = "b"
        token_sha256 = ["{HASH}", "{HASH.upper()}"]
        [actor.limits.chat_completions]
        limit = true
        interval = "soon"
        allowed_models = ["*", "gpt-4o"]
        [[actor]]
        id = "b"
        name = "x\\u0007"
        token_sha256 = []
        limits = {{}}
        [[actor]]
        """,
    )
    assert set(problems) == {
        "version: unknown key",
        "actor[0].id: must consist of 1 to 128 letters, digits and . _ - @ :",
        "actor[0].nam: unknown key; did you mean name?",
        "actor[0].token_sha256[0]: must be the SHA-256 of a token, 64 hex digits; it has 3",
        "actor[0].token_sha256[1]: must be a string",
        "actor[0].access_enabled: must be true or false, not a string",
        "actor[0].limits.chat_completion: unknown key; did you mean chat_completions?",
        "actor[0].limits.embeddings.limit: 99999999999999999 is too large to be counted exactly "
        "over interval 86400000 ms (at most 26062497)",
        "actor[0].limits.embeddings.concurrent_requests: must be at least 1, not 0",
        "actor[1].token_sha256[1]: is the same as actor[1].token_sha256[0]",
        "actor[1].limits.chat_completions.limit: must be a whole number, not true or false",
        "actor[1].limits.chat_completions.interval: must be a duration such as 10s, 1m30s or 500ms, not 'soon'",
        'actor[1].limits.chat_completions.allowed_models[0]: "*" must stand alone',
        "actor[1].limits.chat_completions.allowed_models[1]: must be provider/model, "
        "as anthropic/claude-3-opus-20240229",
        "actor[2].id: is the same as actor[1].id; list all tokens of one actor in its token_sha256",
        "actor[2].name: must be at most 200 characters, none of them a control character",
        "actor[2].token_sha256: must list at least one hash",
        "actor[2].limits: must have at least one of code_completions, chat_completions, embeddings",
        "actor[3].id: is missing",
        "actor[3].token_sha256: is missing",
        "actor[3].limits: must have at least one of code_completions, chat_completions, embeddings",
    }
    assert len(problems) == len(set(problems))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no [[actor]]"),
        ("[actor]\nid = 'a'", "actor: must be written as [[actor]], with two brackets"),
        ("actor = 3", "actor: must be written as [[actor]], with two brackets"),
        (b"[[actor]]\nid = '\xff'", "is not UTF-8 at byte 16"),
        (HEAD + LIMITS.replace("100", "0"), "actor[0].limits.chat_completions.limit: must be at least 1, not 0"),
        (HEAD + LIMITS.replace("100", "-5"), "actor[0].limits.chat_completions.limit: must be at least 1, not -5"),
        (
            HEAD + LIMITS.replace("24h", "0s"),
            "actor[0].limits.chat_completions.interval: must be at least 1 ms, not 0 ms",
        ),
        (
            HEAD + LIMITS + "allowed_models = []",
            'actor[0].limits.chat_completions.allowed_models: must name at least one model, or be ["*"]',
        ),
        (
            HEAD + LIMITS + "unit = 'words'",
            "actor[0].limits.chat_completions.unit: must be one of requests, tokens, not 'words'",
        ),
        (HEAD + LIMITS + "unit = 1", "actor[0].limits.chat_completions.unit: must be a string, not a whole number"),
        (
            HEAD + LIMITS + "max_in_flight = 0",
            "actor[0].limits.chat_completions.max_in_flight: must be from 1 to 1000000, not 0",
        ),
        (
            HEAD + LIMITS + "max_in_flight = 1000001",
            "actor[0].limits.chat_completions.max_in_flight: must be from 1 to 1000000, not 1000001",
        ),
        (
            HEAD + LIMITS + "max_in_flight = 2.5",
            "actor[0].limits.chat_completions.max_in_flight: must be a whole number, not a float",
        ),
        (HEAD + "max_in_flight = -1\n" + LIMITS, "actor[0].max_in_flight: must be from 1 to 1000000, not -1"),
        (HEAD + "max_in_flight = '5'\n" + LIMITS, "actor[0].max_in_flight: must be a whole number, not a string"),
        (HEAD + "unit = 'tokens'\n" + LIMITS, "actor[0].unit: unknown key"),
        (HEAD + "limits = 3", "actor[0].limits: must be a table, not a whole number"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str | bytes, problem: str) -> None:
    """Each mistake has a sentence of its own."""
    assert problem in problems_of(tmp_path, text)


def test_a_syntax_error_is_named_by_line_and_column(tmp_path: Path) -> None:
    """A file that is not valid TOML is refused with line and column."""
    (problem,) = problems_of(tmp_path, '[[actor]]\nid "acme"\n')
    assert problem.startswith("not valid TOML: ")
    assert "line 2, column 4" in problem


def test_a_raw_token_in_the_file_is_not_repeated(tmp_path: Path) -> None:
    """A token in the place of its hash is an error that says so, without the token."""
    token = new_token()
    (problem,) = problems_of(tmp_path, HEAD.replace(HASH, token) + LIMITS)
    assert "looks like a token itself" in problem
    assert token.removeprefix("cgw_") not in problem


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    """A missing file, or a directory in its place, is one sentence."""
    with pytest.raises(ConfigError, match="cannot be read: "):
        load_static_actors(tmp_path / name, percentage=50, interval_ms=10_000)
