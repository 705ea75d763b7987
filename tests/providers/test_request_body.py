"""Reading request bodies: one JSON object, checked, with every problem named by its path."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from attrs import frozen
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cgw.errors import Refusal
from cgw.providers import json_body
from cgw.providers.body_density import MAX_QUOTES
from cgw.providers.json_body import change_fields, decode_object, encode_object, encode_with_messages
from cgw.providers.request_body import BodyReader, Content, JsonList, JsonObject, StringOrStrings, count_content


@frozen
class Turn:
    role: str
    content: Content


@frozen
class Body:
    model: str
    messages: list[Turn] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    stream: bool | None = None
    stop: StringOrStrings | None = None
    tools: JsonList | None = None
    thinking: JsonObject | None = None
    anything: Any = None


def count(body: Body) -> int:
    return sum(count_content(turn.content) for turn in body.messages or ())


READER = BodyReader(Body, Turn, count=count)


def refuse(body: object) -> Refusal:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(Refusal) as caught:
        READER.read_counted(data)
    assert caught.value.status == 400
    assert caught.value.message.startswith("failed to parse request body: ")
    return caught.value


def test_a_valid_body_is_structured_and_decoded() -> None:
    """The structured body has the declared types; the decoded object is as it was sent."""
    sent = {"model": "m", "messages": [{"role": "user", "content": "hé", "x": 1}], "temperature": 1, "unknown": {}}
    parsed, raw = READER.read(json.dumps(sent).encode())
    assert repr(parsed) == repr(Body("m", [Turn("user", Content("hé"))], temperature=1))
    assert raw == sent


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("model", None, "model: expected a string, got null"),
        ("model", 1, "model: expected a string, got a number"),
        ("messages", {}, "messages: expected a list, got an object"),
        ("messages", "text", "messages: expected a list, got a string"),
        ("messages", ["text"], "messages[0]: expected an object, got a string"),
        ("messages", [{"content": ""}], "messages[0].role: required field is missing"),
        ("messages", [{"role": "user"}], "messages[0].content: required field is missing"),
        ("max_tokens", True, "max_tokens: expected an integer, got a boolean"),
        ("max_tokens", 1.5, "max_tokens: expected an integer, got a fraction"),
        ("max_tokens", 10**30, "max_tokens: number out of range"),
        ("max_tokens", "1", "max_tokens: expected an integer, got a string"),
        ("temperature", False, "temperature: expected a number, got a boolean"),
        ("stream", 1, "stream: expected true or false, got a number"),
        ("stream", "true", "stream: expected true or false, got a string"),
        ("stop", 1, "stop: expected a string or a list of strings, got a number"),
        ("stop", ["a", None], "stop[1]: expected a string, got null"),
        ("tools", {}, "tools: expected a list, got an object"),
        ("thinking", [], "thinking: expected an object, got a list"),
    ],
)
def test_a_wrong_type_is_named_by_its_path(field: str, value: object, problem: str) -> None:
    """The text has the path, the expected type and the type that came; the refusal has the path."""
    refusal = refuse({"model": "m", field: value})
    assert refusal.message == f"failed to parse request body: {problem}"
    assert refusal.param == problem.partition(":")[0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (3, ": expected a string or a list of parts, got a number"),
        (None, ": expected a string or a list of parts, got null"),
        ({}, ": expected a string or a list of parts, got an object"),
        (["text"], "[0]: expected an object, got a string"),
        ([{"type": "text", "text": "a"}, {}], "[1].type: required field is missing"),
        ([{"type": 1}], "[0].type: expected a string, got a number"),
        ([{"type": "text"}], "[0].text: required field is missing"),
        ([{"type": "text", "text": None}], "[0].text: expected a string, got null"),
    ],
)
def test_a_wrong_content_is_named_by_its_path(content: object, problem: str) -> None:
    """Parts are checked as far as the gateway reads them, and problems have the path of the part."""
    refusal = refuse({"model": "m", "messages": [{"role": "user", "content": content}]})
    assert refusal.message == f"failed to parse request body: messages[0].content{problem}"


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ("a😀", 2),
        ([], 0),
        ([{"type": "text", "text": "ab"}, {"type": "image", "source": {}}, {"type": "text", "text": "c"}], 3),
        ([{"type": "tool_result", "content": "abcd"}], 4),
        ([{"type": "tool_result", "content": [{"type": "text", "text": "ab"}, {"type": "image"}, 3]}], 2),
        ([{"type": "tool_result"}], 0),
    ],
)
def test_the_text_of_a_content_is_counted(content: object, count: int) -> None:
    """All text counts, in code points: strings, text parts, and the text of tool results."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]}).encode()
    assert READER.read_counted(body)[2] == count


def test_all_problems_are_reported_at_once() -> None:
    """One refusal has all problems in its text, and the first one as its parameter."""
    refusal = refuse({"messages": [{"role": 1, "content": 2}], "stream": 3})
    assert refusal.message == (
        "failed to parse request body: model: required field is missing; "
        "messages[0].role: expected a string, got a number; "
        "messages[0].content: expected a string or a list of parts, got a number; "
        "stream: expected true or false, got a number"
    )
    assert refusal.param == "model"


def test_many_problems_are_cut_short() -> None:
    """The text stays short, however many problems there are."""
    refusal = refuse({"model": "m", "messages": [1] * 1000})
    assert refusal.message.endswith("; and 990 more")
    assert len(refusal.message) < 1000


def test_the_problems_never_repeat_the_values() -> None:
    """The text does not repeat values, which may be part of a prompt."""
    assert "secret" not in refuse({"model": ["secret"], "messages": ["secret"]}).message


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "the body is empty, expected a JSON object"),
        (b" \r\n", "the body is empty, expected a JSON object"),
        (b"[]", "expected a JSON object, got a list"),
        (b"null", "expected a JSON object, got null"),
        (b'{"model"', "invalid JSON: unexpected end (byte 8)"),
        (b'{"model":"m"} {}', "invalid JSON: trailing characters (byte 15)"),
        (b'{"model":NaN}', "invalid JSON: invalid character (byte 9)"),
        (b'{"model":Infinity}', "invalid JSON: invalid character (byte 9)"),
        (b'{"model":1e400}', "invalid JSON: Number out of range"),
        (b"{'model':1}", "invalid JSON: object keys must be strings (byte 1)"),
        (b'{"model":"\xff"}', "not valid UTF-8 (byte 10)"),
        (b"\xff", "not valid UTF-8 (byte 0)"),
        (b"\xef\xbb\xbf{}", "invalid JSON: invalid character (byte 0)"),
    ],
)
def test_invalid_json_is_refused_with_the_position(body: bytes, problem: str) -> None:
    """Each kind of invalid JSON has its own text, with the position of the first wrong byte."""
    assert refuse(body).message == f"failed to parse request body: {problem}"


@pytest.mark.parametrize("depth", [100_000, MAX_QUOTES // 2 - 10])
@pytest.mark.parametrize(("start", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_refused(depth: int, start: bytes, end: bytes) -> None:
    """No depth crashes the reader, whether the nesting is closed or not."""
    body = b'{"model":"m","tools":' + start * depth + b"1" + end * depth + b"}"
    assert refuse(body).message == "failed to parse request body: nested too deeply"
    assert refuse(body[: len(body) // 2]).message == "failed to parse request body: nested too deeply"


def test_an_object_that_cannot_be_encoded_is_refused() -> None:
    """An object that is nested too deeply for the encoder is the client's fault as well."""
    deep: dict[str, Any] = {}
    for _ in range(200_000):
        deep = {"a": deep}
    with pytest.raises(Refusal, match="nested too deeply"):
        encode_object(deep)


def test_the_last_of_duplicate_keys_counts() -> None:
    """A key that comes twice has its last value, both for the checks and for the upstream."""
    parsed, raw = READER.read(b'{"model":"a","model":"b"}')
    assert parsed.model == raw["model"] == "b"


def test_numbers_come_out_as_they_went_in() -> None:
    """Integers beyond 64 bits are exact; floats are the same floats; an integer stays an integer."""
    body = b'{"a":123456789012345678901234567890,"b":0.1,"c":1.0,"d":-9223372036854775809,"e":1e-7,"f":2}'
    assert encode_object(decode_object(body)) == body


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (rb"\ud83d", "\ufffd"),
        (rb"a\udc00b", "a\ufffdb"),
        (rb"\ud83d\ud83d\ude00", "\ufffd😀"),
        (rb"\ud83d\n", "\ufffd\n"),
        (rb"\\ud83d\uD83D", "\\ud83d\ufffd"),
        (rb"\ud83d\ude00", "😀"),
    ],
)
def test_a_lone_surrogate_becomes_a_replacement_character(sent: bytes, read: str) -> None:
    """A lone surrogate, as in a text that JavaScript has cut inside a character, is replaced, as by the reference."""
    assert decode_object(b'{"text":"' + sent + b'"}') == {"text": read}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values))
def test_any_object_survives_reading_and_writing(value: dict[str, Any]) -> None:
    """A value that is decoded and encoded again is the same value."""
    assert json.loads(encode_object(decode_object(json.dumps(value).encode()))) == value


@given(st.dictionaries(st.sampled_from(["model", "messages", "stream", "stop", "tools", "max_tokens"]), json_values))
def test_any_object_is_read_or_refused(value: dict[str, Any]) -> None:
    """Any object is read, or refused with a path."""
    try:
        READER.read_counted(json.dumps(value).encode())
    except Refusal as refusal:
        assert refusal.param


some_texts = st.text(max_size=2)
some_integers = st.integers(-2, 2) | st.sampled_from([2**63 - 1, 2**63, -(2**63), 10**30])
contents = (
    some_texts
    | st.none()
    | st.lists(
        st.dictionaries(st.sampled_from(["type", "text", "content"]), st.sampled_from(["text", "tool_result", None, 1]))
        | some_texts,
        max_size=2,
    )
)
turns = st.lists(
    st.fixed_dictionaries({"role": some_texts | some_integers, "content": contents}, optional={"x": some_texts})
    | st.fixed_dictionaries({}, optional={"role": some_texts, "content": contents})
    | st.none(),
    max_size=2,
)
odd_values: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | some_integers | st.just(1.0) | st.just([]) | st.just({}) | some_texts
)
objects = st.fixed_dictionaries(
    {"model": some_texts | st.none()},
    optional={
        "messages": turns | odd_values,
        "max_tokens": some_integers | odd_values,
        "temperature": st.floats(allow_nan=False) | odd_values,
        "stream": st.booleans() | odd_values,
        "stop": st.lists(some_texts | odd_values, max_size=2) | odd_values,
        "tools": st.lists(some_texts) | odd_values,
        "thinking": st.dictionaries(some_texts, some_texts) | odd_values,
        "anything": odd_values,
        "unknown": odd_values,
    },
)


@settings(max_examples=1000)
@given(objects | st.fixed_dictionaries({}, optional={"messages": turns}))
def test_both_ways_to_structure_a_body_agree(value: dict[str, Any]) -> None:
    """The fast way accepts exactly the objects that cattrs does, and makes the same of them."""
    expected: Body | None = None
    with contextlib.suppress(Refusal):
        expected = READER.structure_or_explain(value)
    found: Body | None = None
    with contextlib.suppress(msgspec.ValidationError, TypeError):
        structured = READER.structure(value)
        count(structured)
        found = structured
    # As text: 1, 1.0 and True are equal.
    assert repr(found) == repr(expected)


@given(st.binary())
@example(b'{"model":"\\ud800')
@example(b'{"model":"m","messages":[{"role":"user","content":[{"type":{}}]}]}')
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """Bytes are read or refused; nothing else is raised."""
    try:
        READER.read_counted(body)
    except Refusal as refusal:
        assert refusal.status == 400


KEYS = st.sampled_from(["messages", "m\\u0065ssages", "model", "a"])
RAW_VALUES = st.sampled_from(
    [
        b"[]",
        b"[1]",
        b'[{"role": "user"}]',
        b'"\\ud83d"',
        b'"\\ud83d\\ude00"',
        b'"\\n\\""',
        b"null",
        b" {} ",
        b'"\xc3\xa9"',
        b"1e2",
    ]
)


@settings(max_examples=500)
@given(st.lists(st.tuples(KEYS, RAW_VALUES)))
def test_copied_messages_are_those_that_would_be_encoded(fields: list[tuple[str, bytes]]) -> None:
    """Copied and encoded messages have the same value, also if keys are escaped or occur twice."""
    body = b"{" + b", ".join(b'"%b": %b' % (key.encode(), value) for key, value in fields) + b"}"
    outgoing = {**decode_object(body), "model": "set"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "LARGE_BODY_BYTES", 0)
        assert json.loads(encode_with_messages(outgoing, body)) == json.loads(encode_object(outgoing))


NAMES_OF_FIELDS = st.sampled_from(["model", "user", "messages", "é", 'a"b', "x", ""])
COMPACT = st.lists(
    st.tuples(NAMES_OF_FIELDS, st.sampled_from([b"1", b'"\\u00e9"', b"[ 1 ]", b"null", b"1e5"])), max_size=5
)


@given(COMPACT, st.booleans(), st.dictionaries(NAMES_OF_FIELDS, st.sampled_from(["v", None, 1]), max_size=3))
def test_compact_bodies_change_as_all_others_do(
    fields: list[tuple[str, bytes]], is_escaped: bool, changes: dict[str, Any]
) -> None:
    """With blanks before it, which take the general path, a body changes to the same; a repeated field is refused."""
    names = [json.dumps(name, ensure_ascii=is_escaped).encode() for name, _ in fields]
    body = b"{" + b",".join(name + b":" + value for name, (_, value) in zip(names, fields, strict=True)) + b"}"
    if len({name for name, _ in fields}) < len(fields):
        for sent in (body, b" " + body):
            with pytest.raises(Refusal, match="occurs twice"):
                change_fields(sent, changes)
        return
    assert b" " + change_fields(body, changes) == change_fields(b" " + body, changes)
