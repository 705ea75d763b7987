"""Bodies of OpenAI-shaped requests pass as they came, byte for byte, but for what the gateway sets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.config.kinds import Secret
from cgw.errors import Refusal
from cgw.model import Feature
from cgw.providers.dialect import Caller, Dialect
from cgw.providers.embeddings.build import build_sdk_embeddings
from cgw.providers.embeddings.settings import EmbeddingsSettings
from cgw.providers.fireworks.settings import FireworksSettings
from cgw.providers.openai.settings import OpenAISettings
from cgw.providers.openai_compatible.settings import OpenAICompatibleSettings
from cgw.providers.registry import build_dialects
from cgw.wire.messages import RequestHead
from tests.wire.test_json_members import BLANKS, NAMES, VALUES

_OPENAI = OpenAISettings(access_token=Secret("k"))
_COMPATIBLE = OpenAICompatibleSettings(api_url="http://a/v1", access_token=Secret("k"), allowed_models=("*",))
_BUILT = (
    *build_dialects({"openai": _OPENAI, "fireworks": FireworksSettings(access_token=Secret("k")), "own": _COMPATIBLE}),
    *build_sdk_embeddings(EmbeddingsSettings(), {"openai": _OPENAI}),
)
DIALECTS = {dialect.path: dialect for dialect in _BUILT if not dialect.path.startswith("/v1/")}
USER = b'"acme:7"'
# These name the caller; on the others the API has no field for it, or the provider is told nothing.
WITH_USER = {path for path in DIALECTS if path.split("/")[-1] in ("responses", "completions", "embeddings")} - {
    "/fireworks/v1/completions",
    "/fireworks/v1/chat/completions",
}
# Fields that are checked, or that change what is sent; drawn ones would only be refused.
CHECKED = {
    *("model", "messages", "prompt", "input", "instructions", "stream", "store", "n", "best_of", "max_tokens"),
    *("max_completion_tokens", "max_output_tokens", "user", "safety_identifier", "background", "conversation"),
    *("previous_response_id", "prompt_cache_options", "models", "fallbacks"),
}
# A number that no float can hold is refused.
PASSING = VALUES.filter(lambda value: b"1e400" not in value)


def list_own_fields(dialect: Dialect) -> list[bytes]:
    """Return the fields that make a body valid on the route of ``dialect``, with odd blanks and escapes."""
    model = b'"m\\u006fdel" : "m\\u006f"'
    last = dialect.path.split("/")[-1]
    if dialect.path.endswith("chat/completions"):
        return [model, b'"messages":[ {"role":"user" ,"content":"\\u00e9 \\n","x":1e300,"x":1E+2}]']
    return [model, b'"prompt" :"\\u00e9"' if last == "completions" else b'"input":  "\\/\\u00e9"']


def prepare(dialect: Dialect, body: bytes) -> bytes:
    feature = dialect.default_feature or Feature.CHAT_COMPLETIONS
    head = RequestHead(b"POST", dialect.path.encode(), ())
    return dialect.prepare(head, body, Caller("acme:7", feature)).upstream.body


@st.composite
def bodies(draw: st.DrawFn) -> tuple[Dialect, bytes, bytes, bytes]:
    """Draw a dialect, and a valid body: what is before the place of the caller's field, that field, and the rest."""
    dialect = DIALECTS[draw(st.sampled_from(sorted(DIALECTS)))]
    names = draw(st.lists(NAMES.filter(lambda name: name not in CHECKED), max_size=4, unique=True))
    members = [json.dumps(name).encode() + draw(BLANKS) + b":" + draw(BLANKS) + draw(PASSING) for name in names]
    members = draw(st.permutations([*members, *list_own_fields(dialect)]))
    at = draw(st.integers(0, len(members)))
    separator = draw(BLANKS) + b"," + draw(BLANKS)
    before = b"".join(member + separator for member in members[:at])
    after = b"".join(separator + member for member in members[at:])
    return dialect, draw(BLANKS) + b"{" + before, b'"us\\u0065r":', after + draw(BLANKS) + b"}" + draw(BLANKS)


@given(bodies(), st.sampled_from([b'"mine"', b"null"]))
def test_only_the_caller_is_set(drawn: tuple[Dialect, bytes, bytes, bytes], value: bytes) -> None:
    """The caller's identifier takes the place of the client's; where the API has none, the body is unchanged."""
    dialect, before, key, after = drawn
    body = before + key + value + after
    expected = before + key + USER + after if dialect.path in WITH_USER else body
    assert prepare(dialect, body) == expected


@given(bodies())
def test_an_unnamed_caller_is_added_at_the_end(drawn: tuple[Dialect, bytes, bytes, bytes]) -> None:
    """A body without ``user`` gets one behind its last field, and is otherwise unchanged."""
    dialect, before, _, after = drawn
    body = before + b'"z":0' + after
    sent = prepare(dialect, body)
    if dialect.path not in WITH_USER:
        assert sent == body
        return
    end = len(body[: body.rindex(b"}")].rstrip(b" \t\r\n"))
    assert sent == body[:end] + b',"user":' + USER + body[end:]


@pytest.mark.parametrize("path", sorted(DIALECTS))
def test_the_models_prefix_is_cut(path: str) -> None:
    """``provider/model`` loses its prefix, and only that changes."""
    dialect = DIALECTS[path]
    fields = list_own_fields(dialect)[1:]
    before, after = b'{ "a":1.0 , "model" : ', b" ," + b",".join(fields) + b"}"
    sent = prepare(dialect, before + f'"{dialect.provider}/org/m"'.encode() + after)
    assert sent.startswith(before + b'"org/m"' + after[:-1])


@pytest.mark.parametrize("path", sorted(WITH_USER))
def test_a_safety_identifier_is_removed(path: str) -> None:
    """It would name another caller than ``user`` does."""
    fields = list_own_fields(DIALECTS[path])
    body = b"{" + b",".join([fields[0], b'"safety_identifier":"me"', fields[1]]) + b"}"
    assert prepare(DIALECTS[path], body) == b"{" + b",".join(fields) + b',"user":' + USER + b"}"


@pytest.mark.parametrize("path", sorted(DIALECTS))
@pytest.mark.parametrize("field", [b'"model":"other"', b'"\\u006dodel":"other"', b'"us\\u0065r":"x"', b'"extra":[]'])
def test_a_field_that_is_there_twice_is_refused(path: str, field: bytes) -> None:
    """Parsers differ in which of two counts, and cgw has checked one: so neither passes."""
    body = b"{" + b",".join([field, *list_own_fields(DIALECTS[path]), b'"user":"y"', b'"extra":1']) + b"}"
    with pytest.raises(Refusal, match="it occurs twice") as refused:
        prepare(DIALECTS[path], body)
    assert (refused.value.status, refused.value.param) == (400, json.loads(b"{" + field + b"}").popitem()[0])


def test_lone_surrogates_are_replaced() -> None:
    """They make a body invalid: each becomes U+FFFD, and everything else stays."""
    start = b'{"model":"m" , "messages":[{"role":"user","content":"'
    body = start + b'\\ud83d \\ud83d\\ude00"}],"a":1.50}'
    sent = prepare(DIALECTS["/openai/v1/chat/completions"], body)
    assert sent == start + b'\\ufffd \\ud83d\\ude00"}],"a":1.50,"user":"acme:7"}'


@pytest.mark.parametrize("path", sorted(DIALECTS))
@pytest.mark.parametrize(
    "field", [b'"Model":"other"', b'"MODE\\u004c":"other"', b'"\\u017ftream":true', b'"Extra":2', b'"Background":true']
)
def test_a_field_in_other_letters_is_refused(path: str, field: bytes) -> None:
    """Servers in Go take ``Model`` for ``model``, a long s for an s: so a field that is checked has one spelling."""
    body = b"{" + b",".join([*list_own_fields(DIALECTS[path]), b'"extra":1', field]) + b"}"
    with pytest.raises(Refusal, match="write it as") as refused:
        prepare(DIALECTS[path], body)
    assert refused.value.status == 400


@pytest.mark.parametrize("path", sorted(DIALECTS))
@pytest.mark.parametrize("name", ["Model", "\u017ftream", "Background"])
def test_a_compact_body_has_no_field_in_other_letters(path: str, name: str) -> None:
    """Bodies without blanks, which are changed in another way, are checked, too: they passed once."""
    fields = [json.loads(b"{" + field + b"}") for field in list_own_fields(DIALECTS[path])]
    value = {**fields[0], **fields[1], name: "other"}
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    with pytest.raises(Refusal, match="write it as"):
        prepare(DIALECTS[path], body)


@pytest.mark.parametrize("path", sorted(DIALECTS))
def test_other_fields_may_have_any_letters(path: str) -> None:
    """Only what is checked, or there in other letters, has to be written as the API does."""
    body = b"{" + b",".join([*list_own_fields(DIALECTS[path]), b'"topK":1', b'"top_k":2']) + b"}"
    assert b'"topK":1' in prepare(DIALECTS[path], body)
