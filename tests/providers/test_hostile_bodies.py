"""Bodies that are made to be expensive are refused before they cost seconds, on every route that reads bodies."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from cgw.config.kinds import Secret
from cgw.errors import Refusal
from cgw.model import Feature
from cgw.providers.anthropic.settings import AnthropicSettings
from cgw.providers.body_density import MAX_PARTS, MAX_QUOTES, MAX_UNCOUNTED_BYTES
from cgw.providers.body_structure import MAX_ITEMS
from cgw.providers.dialect import Caller
from cgw.providers.google.settings import GoogleSettings
from cgw.providers.provider import ProviderSettings
from cgw.providers.registry import build_dialects
from cgw.providers.request_body import MAX_EXPLAINED, MAX_REPORTED_PROBLEMS
from cgw.wire.json_members import MAX_MEMBERS
from cgw.wire.messages import RequestHead
from tests.providers.test_bodies_pass import DIALECTS as OPENAI_DIALECTS

_OTHERS: dict[str, ProviderSettings] = {
    "anthropic": AnthropicSettings(access_token=Secret("k")),
    "google": GoogleSettings(access_token=Secret("k")),
}
DIALECTS = OPENAI_DIALECTS | {dialect.path: dialect for dialect in build_dialects(_OTHERS)}
VALID: dict[str, Any] = {
    "model": "m",
    "max_tokens": 1,
    "messages": [{"role": "user", "content": "x"}],
    "contents": [{"parts": [{"text": "x"}]}],
    "content": {"parts": [{"text": "x"}]},
    "requests": [{"content": {"parts": [{"text": "x"}]}}],
    "input": "x",
    "prompt": "x",
    "max_tokens_to_sample": 1,
}
EVERY_ROUTE = pytest.mark.parametrize("path", sorted(DIALECTS))


def prepare(path: str, body: bytes) -> None:
    dialect = DIALECTS[path]
    head = RequestHead(b"POST", path.replace("{model}", "m").encode(), ())
    dialect.prepare(head, body, Caller("acme:7", dialect.default_feature or Feature.CHAT_COMPLETIONS))


def replace(name: str, value: bytes) -> bytes:
    """Return the valid body with another value of one field, in JSON."""
    marked = json.dumps({**VALID, name: "@"}).encode()
    return marked.replace(b'"@"', value)


@EVERY_ROUTE
def test_the_body_that_the_others_differ_from_is_valid(path: str) -> None:
    """Otherwise they would be refused for something else."""
    prepare(path, replace("extra", b"1"))


@EVERY_ROUTE
@pytest.mark.parametrize("piece", [b"{},", b"[],"])
def test_too_many_objects_and_lists(path: str, piece: bytes) -> None:
    """Each costs a third of a microsecond only to be decoded, in which no other request is served."""
    with pytest.raises(Refusal, match=f"more than {MAX_PARTS} objects and lists"):
        prepare(path, replace("extra", b"[" + piece * (MAX_UNCOUNTED_BYTES // 3) + b"1]"))


@EVERY_ROUTE
@pytest.mark.parametrize("piece", [b'"a",', b'"a\\\\",'])
def test_too_many_texts(path: str, piece: bytes) -> None:
    """Each is an object in memory; quotation marks inside of texts are none."""
    with pytest.raises(Refusal, match="more than 200000 names and texts"):
        prepare(path, replace("extra", b"[" + piece * MAX_QUOTES + b"1]"))
    prepare(path, replace("extra", b'"' + b'\\"' * MAX_QUOTES * 2 + b'"'))


@pytest.mark.parametrize("end", [b"}", b',"stream":false}'])
def test_many_fields_take_no_time(end: bytes) -> None:
    """800,000 fields at the top are refused before they are decoded, which took half a second."""
    fields = b"".join(b',"%d":0' % number for number in range(MAX_QUOTES // 2))
    with pytest.raises(Refusal, match="names and texts") as refused:
        prepare("/openai/v1/chat/completions", json.dumps(VALID).encode()[:-1] + fields + end)
    assert refused.value.status == 400


@EVERY_ROUTE
def test_too_many_fields(path: str) -> None:
    """No API has so many."""
    fields = b",".join(b'"%d":1' % number for number in range(MAX_MEMBERS + 1))
    with pytest.raises(Refusal, match=f"fields, at most {MAX_MEMBERS} are accepted"):
        prepare(path, b"{" + fields + b"," + replace("extra", b"1")[1:])


@pytest.mark.parametrize(
    ("path", "name", "item"),
    [
        ("/openai/v1/chat/completions", "messages", b'{"role":"user","content":""}'),
        ("/openai/v1/responses", "input", b"{}"),
        ("/openai/v1/responses", "input", b"1"),
        ("/openai/v1/responses/input_tokens", "input", b"{}"),
        ("/anthropic/v1/messages", "messages", b'{"role":"user","content":""}'),
        ("/google/v1beta/models/{model}:generateContent", "contents", b'{"parts":[]}'),
    ],
)
def test_too_many_items(path: str, name: str, item: bytes) -> None:
    """Each is looked at in Python."""
    prepare(path, replace(name, b"[" + item + b"]"))
    with pytest.raises(Refusal, match="items") as refused:
        prepare(path, replace(name, b"[" + b",".join([item] * (MAX_ITEMS + 1)) + b"]"))
    assert (refused.value.status, refused.value.param) == (400, name)


def test_few_of_many_problems_are_looked_at() -> None:
    """An explanation takes kilobytes for each problem, so the items of all lists together are bounded."""
    turn = b'{"parts":[' + b",".join([b"1"] * (MAX_EXPLAINED // 2)) + b"]}"
    with pytest.raises(Refusal, match=r"and (\d+) more") as refused:
        prepare("/google/v1beta/models/{model}:generateContent", replace("contents", b"[%b]" % b",".join([turn] * 8)))
    count = int(refused.value.message.split(" more")[0].split()[-1]) + MAX_REPORTED_PROBLEMS
    assert count <= MAX_EXPLAINED + 8


@EVERY_ROUTE
@pytest.mark.parametrize("name", ["prompt", "input", "messages", "contents", "system", "extra"])
@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"content":', '[{"parts":'])
def test_deep_nesting_is_no_bug(path: str, name: str, opening: str) -> None:
    """What JSON's decoder takes is refused, or passes, and overflows no stack behind it."""
    closing = opening.translate(str.maketrans("[{", "]}", '":acdeinoprst'))[::-1]
    for depth in (sys.getrecursionlimit() // 3, sys.getrecursionlimit() * 2):
        try:
            prepare(path, replace(name, (opening * depth + "1" + closing * depth).encode()))
        except Refusal as refusal:
            assert refusal.status == 400
