"""Request bodies: decode the JSON, check the known fields, build the upstream's body.

A dialect declares the API's fields as an attrs class. :class:`BodyReader` decodes the bytes and structures the object
into that class, and also returns the decoded object. On routes for SDKs the upstream's body is the client's own bytes,
in which :func:`change_fields` sets what the gateway decides. On the reference's routes it is built from the decoded
object, so that numbers and unknown parts are passed on unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Generic, NewType, NoReturn, TypeVar

import attrs
import cattrs
import msgspec
from cattrs.cols import is_sequence, list_structure_factory
from cattrs.gen import make_dict_structure_fn

from cgw.errors import Refusal
from cgw.providers.body_structure import MAX_ITEMS, Convert, build_reader
from cgw.wire.json_members import MAX_MEMBERS, Member, UnusualObject, find_members, replace_members

# Bounds the response: each of a thousand messages may have a problem.
MAX_REPORTED_PROBLEMS = 10
MAX_PARTS = 250_000
"""The most objects and lists of a body, at some 0.4 microseconds each. What stands in texts counts, too: a text of four
megabytes that is nothing but JSON has half as many."""
MAX_INTEGER = 2**63 - 1
"""The largest number in an integer field: that of an int64, as in the reference."""

# Types of their own, because cattrs finds a hook by the type (see _CHECKS).
JsonObject = NewType("JsonObject", dict[str, Any])
"""An object whose fields only the provider checks."""
JsonList = NewType("JsonList", list[Any])
"""A list whose items only the provider checks."""
StringOrStrings = NewType("StringOrStrings", object)
"""A string, or a list of strings."""

LARGE_BODY_BYTES = 16 * 1024
"""From this size on, messages that are passed on unchanged are copied instead of encoded."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()

T = TypeVar("T")

_Structure = Callable[[Any, Any], Any]


@attrs.define
class Content:
    """The checked content of a message. ``raw`` is a string, a list of objects that have a ``type``, or ``None``."""

    raw: str | list[dict[str, Any]] | None
    character_count: int
    """The length of all its text, in code points."""


class Mismatch(ValueError):
    """A value of the wrong type. ``path`` is that of the wrong part inside the checked value, or empty."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path


def name_of_type(value: object) -> str:
    """Return JSON's name for the type of a decoded value, with an article.

    Error texts name types only, and never repeat a value, which may be part of a prompt.
    """
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


def _expected(what: str, value: object, path: str = "") -> NoReturn:
    raise Mismatch(f"expected {what}, got {name_of_type(value)}", path)


# Checks of values, also as structure hooks for cattrs, which gives them the type as well. Its own hooks convert instead
# of checking: 1 to "1", "false" to True.


def _check_string(value: object, _: object = None) -> str:
    return value if isinstance(value, str) else _expected("a string", value)


def _check_boolean(value: object, _: object = None) -> bool:
    # Not bool(value): the provider would get what the client has sent, and `"false"` is true in Python.
    return value if isinstance(value, bool) else _expected("true or false", value)


def _check_integer(value: object, _: object = None) -> int:
    if isinstance(value, int) and not isinstance(value, bool):  # in Python, True is an int
        if -MAX_INTEGER <= value <= MAX_INTEGER:
            return value
        raise Mismatch("number out of range")
    if isinstance(value, float):
        raise Mismatch("expected an integer, got a fraction")
    _expected("an integer", value)


def _check_number(value: object, _: object = None) -> float:
    # An integer is not converted, so that it is passed on exactly, however large.
    return value if isinstance(value, int | float) and not isinstance(value, bool) else _expected("a number", value)


def _check_object(value: object, _: object = None) -> JsonObject:
    return JsonObject(value) if isinstance(value, dict) else _expected("an object", value)


def _check_list(value: object, _: object = None) -> JsonList:
    return JsonList(value) if isinstance(value, list) else _expected("a list", value)


def _check_string_or_strings(value: object, _: object = None) -> StringOrStrings:
    if not isinstance(value, str | list):
        _expected("a string or a list of strings", value)
    if isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, str):
                _expected("a string", item, f"[{index}]")
    return StringOrStrings(value)


def _check_content(value: object, _: object = None) -> Content:
    if isinstance(value, str):
        return Content(value, len(value))
    if not isinstance(value, list):
        _expected("a string or a list of parts", value)
    count = 0
    for index, part in enumerate(value):
        if not isinstance(part, dict):
            _expected("an object", part, f"[{index}]")
        kind = part.get("type")
        if kind == "text":
            text = part.get("text")
            count += len(text) if isinstance(text, str) else _expected_string_in(part, "text", index)
        # Anthropic's; with OpenAI, the result of a tool is a message of its own.
        elif kind == "tool_result":
            count += _count_tool_result(part.get("content"))
        elif not isinstance(kind, str):
            _expected_string_in(part, "type", index)
        # Parts of other kinds (images, audio, tool calls) are passed on; the provider checks them.
    return Content(value, count)


def _expected_string_in(part: dict[str, Any], name: str, index: int) -> NoReturn:
    path = f"[{index}].{name}"
    if name not in part:
        raise Mismatch("required field is missing", path)
    _expected("a string", part[name], path)


def _count_tool_result(content: object) -> int:
    """Return the length of the text in a tool result (Anthropic's Messages API), without checking its shape."""
    if isinstance(content, str):
        return len(content)
    texts = (part.get("text") for part in content if isinstance(part, dict)) if isinstance(content, list) else ()
    return sum(len(text) for text in texts if isinstance(text, str))


_CHECKS: dict[Any, Callable[..., Any]] = {
    str: _check_string,
    bool: _check_boolean,
    int: _check_integer,
    float: _check_number,
    JsonObject: _check_object,
    JsonList: _check_list,
    StringOrStrings: _check_string_or_strings,
    Content: _check_content,
}

_EXACT_KINDS: dict[Any, type] = {
    str: str,
    bool: bool,
    float: float,
    JsonObject: dict,
    JsonList: list,
    StringOrStrings: str,
}
"""The class of values that the checks above return as they are."""


def _make_reader(classes: Iterable[type], cls: type) -> Convert:
    readers: dict[Any, Convert] = {}
    for part in (*classes, cls):
        readers[part] = build_reader(part, _EXACT_KINDS, _CHECKS, readers)
    return readers[cls]


@attrs.define
class _ItemBudget:
    """How many items of lists may still be explained: each may have a problem, which takes a kilobyte."""

    left: int = MAX_ITEMS

    def take(self, value: list[Any]) -> None:
        if len(value) > MAX_ITEMS:
            raise Mismatch(f"{len(value)} items, at most {MAX_ITEMS} are accepted")
        self.left -= len(value)
        if self.left < 0:
            raise Mismatch(f"these items were not looked at, beyond {MAX_ITEMS} others")


def _make_converter(classes: Iterable[type], budget: _ItemBudget) -> cattrs.Converter:
    converter = cattrs.Converter()
    for kind, check in _CHECKS.items():
        converter.register_structure_hook(kind, check)
    # For fields such as list[Message].
    converter.register_structure_hook_factory(is_sequence, partial(_structure_list, budget))
    # Innermost first: the compiled function of a class holds the hooks of its fields' types, which must exist by then.
    for cls in classes:
        structure: _Structure = make_dict_structure_fn(cls, converter)
        converter.register_structure_hook(cls, _require(dict, "an object", structure))
    return converter


def _require(kind: type, what: str, structure: _Structure) -> _Structure:
    """Return ``structure`` with a check of the value's type before it: cattrs takes any iterable for a list."""

    def structure_kind(value: object, cls: Any) -> Any:
        return structure(value, cls) if isinstance(value, kind) else _expected(what, value)

    return structure_kind


def _structure_list(budget: _ItemBudget, cls: Any, converter: cattrs.BaseConverter) -> _Structure:
    structure: _Structure = list_structure_factory(cls, converter)

    def structure_some(value: Any, cls: Any) -> Any:
        budget.take(value)
        return structure(value, cls)

    return _require(list, "a list", structure_some)


class BodyReader(Generic[T]):
    """Reads request bodies of one shape. Make one for each dialect: cattrs compiles functions here.

    ``parts`` are the attrs classes inside ``cls``, innermost first.
    """

    def __init__(self, cls: type[T], *parts: type) -> None:
        self._cls = cls
        self.structure: Callable[[dict[str, Any]], T] = _make_reader(parts, cls)
        """Structures a decoded object. Raises :exc:`TypeError` or :exc:`ValueError`, without a reason."""
        # cattrs records the path of each problem, which is slow; so it gets the bodies that are not valid only.
        self._budget = _ItemBudget()
        self._explainer = _make_converter((*parts, cls), self._budget)

    def read(self, body: bytes) -> tuple[T, dict[str, Any]]:
        """Return the structured body, and the decoded object that it was made from.

        Raises :exc:`~cgw.errors.Refusal` (400) for anything but one JSON object (RFC 8259, with nothing after it)
        whose known fields have their types. The last of duplicate keys counts. A ``null`` counts as an absent field if
        the field is optional.
        """
        raw = decode_object(body)
        return self.read_object(raw), raw

    def read_object(self, raw: dict[str, Any]) -> T:
        """Return the structured body of a decoded object, as :meth:`read` does."""
        try:
            return self.structure(raw)
        except (TypeError, ValueError):
            return self.structure_or_explain(raw)

    def structure_or_explain(self, raw: dict[str, Any]) -> T:
        """Return the structured body of a decoded object, slowly. Raises :exc:`~cgw.errors.Refusal` with all problems.

        ``read`` leaves to it all objects that ``structure`` does not accept.
        """
        self._budget.left = MAX_ITEMS
        try:
            return self._explainer.structure(raw, self._cls)
        # This converter collects all problems of a body in a group (detailed_validation).
        except (cattrs.BaseValidationError, Mismatch, KeyError, TypeError, ValueError) as error:
            problems = list(_list_problems(error, ""))
        text = "; ".join(f"{path}: {problem}" for path, problem in problems[:MAX_REPORTED_PROBLEMS])
        more = len(problems) - MAX_REPORTED_PROBLEMS
        if more > 0:
            text += f"; and {more} more"
        raise Refusal(400, f"failed to parse request body: {text}", param=problems[0][0])


def _list_problems(error: BaseException, path: str) -> Iterable[tuple[str, str]]:
    """Yield path and text of each problem in cattrs' groups of errors, whose notes have the steps of the path."""
    if isinstance(error, cattrs.ClassValidationError):
        # First the errors that have a note with the field's name, then those that have none.
        for inner, note in error.group_exceptions()[0]:
            yield from _list_problems(inner, f"{path}.{note.name}" if path else note.name)
        yield from ((path, str(inner)) for inner in error.group_exceptions()[1])
    elif isinstance(error, cattrs.IterableValidationError):
        for inner, index_note in error.group_exceptions()[0]:
            yield from _list_problems(inner, f"{path}[{index_note.index}]")
        yield from ((path, str(inner)) for inner in error.group_exceptions()[1])
    elif isinstance(error, KeyError):
        # cattrs' compiled functions read a field without a default by `value[name]`.
        yield path, "required field is missing"
    elif isinstance(error, Mismatch):
        yield path + error.path, error.problem
    else:
        yield path, "wrong type"


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object from UTF-8. Raises :exc:`~cgw.errors.Refusal` (400) with the problem and its position.

    So are bodies with more than :data:`MAX_PARTS` or a thousand fields, which would hold up all other requests.
    """
    if len(body) > MAX_PARTS and body.count(b"{") + body.count(b"[") > MAX_PARTS:
        raise _refuse_json(f"more than {MAX_PARTS} objects and lists")
    try:
        value = _decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        value = _decode_again(body, error)
    if not isinstance(value, dict):
        raise Refusal(400, f"failed to parse request body: expected a JSON object, got {name_of_type(value)}")
    if len(value) > MAX_MEMBERS:
        raise _refuse_json(f"it has {len(value)} fields, at most {MAX_MEMBERS} are accepted")
    return value


def encode_object(value: dict[str, Any]) -> bytes:
    """Encode a body for the upstream. Raises :exc:`~cgw.errors.Refusal` (400) if it is nested too deeply."""
    try:
        return _encoder.encode(value)
    except RecursionError:
        raise _refuse_json("nested too deeply") from None


class _Messages(msgspec.Struct, gc=False):
    messages: msgspec.Raw = msgspec.Raw()


SMALL_BODY_BYTES = 64 * 1024
"""Bodies up to this size are encoded once to see whether they are compact: in a twelfth of the time of finding where
each field stands. A large one would be copied for it."""

_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_messages_decoder = msgspec.json.Decoder(_Messages)


def encode_with_messages(value: dict[str, Any], body: bytes) -> bytes:
    """Encode a body for the upstream, as :func:`encode_object`; its ``messages`` are those of the client's ``body``.

    Those of a large body are copied, as they came, which takes a tenth to a half of the time that encoding them takes.
    All other fields are encoded, so that no key occurs twice beside them: parsers differ in which one counts.
    """
    if len(body) >= LARGE_BODY_BYTES:
        try:
            messages = _messages_decoder.decode(body).messages
        except (msgspec.MsgspecError, ValueError, RecursionError):
            # Lone surrogates: the body was only decoded after they were replaced.
            return encode_object(value)
        if messages:
            return encode_object({**value, "messages": messages})
    return encode_object(value)


def change_fields(body: bytes, changes: Mapping[str, Any], checked: Collection[str] = ()) -> bytes:
    """Return a client's body with the top-level fields of ``changes`` set, or removed where the value is ``None``.

    ``body`` was decoded by a :class:`BodyReader`. All other bytes are the client's, a large body is copied once and
    not encoded; only lone surrogates, with which it is not valid, are replaced. A field that is there twice anywhere
    at the top is refused: which of the two counts would be for the upstream to choose, and the gateway has checked
    the last. So is another field or one of ``checked`` in other letters, as in ``Model``: servers in Go take either.
    Raises :exc:`~cgw.errors.Refusal` (400).
    """
    if len(body) < SMALL_BODY_BYTES and (changed := _change_compact(body, changes)) is not None:
        return changed
    members = _find_members(body)
    if members is None:
        # The body was only decoded after they were replaced.
        body = _replace_lone_surrogates(body)
        members = _find_members(body)
    if members is None:
        raise _refuse_json("its fields cannot be told apart")
    _check_letters(members, checked)
    encoded = {name: None if value is None else _encoder.encode(value) for name, value in changes.items()}
    return replace_members(body, members, encoded)


def _change_compact(body: bytes, changes: Mapping[str, Any]) -> bytes | None:
    """Return what :func:`change_fields` does for a body without blanks between its fields, as most clients send it.

    ``None`` for any other. Such a body is what its fields give when they are encoded as they stand there: then no field
    occurs twice, and nothing stands between them.
    """
    try:
        values: dict[str, Any] = {**_decode_raw(body)}
        if _encoder.encode(values) != body:
            return None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    for name, value in changes.items():
        if value is None:
            values.pop(name, None)
        else:
            values[name] = value
    return _encoder.encode(values)


def _find_members(body: bytes) -> dict[str, Member] | None:
    try:
        return find_members(body)
    except UnusualObject as error:
        name = error.name
        text = f"failed to parse request body: {'' if name is None else f'{name[:100]}: '}{error}"
        raise Refusal(400, text, param=name) from None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _check_letters(names: Collection[str], checked: Collection[str]) -> None:
    for name in names:
        folded = name.casefold()  # as Go compares: also a long s with an s
        if folded != name and (folded in names or folded in checked):
            raise Refusal(400, f"failed to parse request body: {name[:100]}: write it as {folded[:100]}", param=name)


def keep_fields(value: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Return a copy of ``value`` with the fields in ``names`` only, without those that are ``null``."""
    return {name: item for name, item in value.items() if name in names and item is not None}


def keep_fields_of_each(values: list[dict[str, Any]], names: frozenset[str]) -> list[dict[str, Any]]:
    """Return the objects with the fields in ``names`` only; ``values`` itself if they have no others."""
    if all(value.keys() <= names for value in values):
        return values
    return [{name: item for name, item in value.items() if name in names} for value in values]


def _refuse_json(problem: str) -> Refusal:
    return Refusal(400, f"failed to parse request body: {problem}")


def _decode_again(body: bytes, error: Exception) -> Any:
    """Decode a body after an error: replace lone surrogates and retry, or raise the refusal that explains the error."""
    # Each step explains one kind of error. Only lone surrogates can be mended, so they come last.
    if isinstance(error, RecursionError):
        raise _refuse_json("nested too deeply") from None
    if not body.strip():
        raise _refuse_json("the body is empty, expected a JSON object") from None
    # The positions in msgspec's errors about UTF-8 are not those in the body.
    try:
        body.decode()
    except UnicodeDecodeError as not_utf8:
        raise _refuse_json(f"not valid UTF-8 (byte {not_utf8.start})") from None
    replaced = _replace_lone_surrogates(body)
    if replaced != body:
        try:
            return _decoder.decode(replaced)
        except RecursionError:
            raise _refuse_json("nested too deeply") from None
        except (msgspec.DecodeError, ValueError) as another:
            error = another
    # msgspec's own words, without its prefix and without the path that it may add.
    problem = str(error).removeprefix("JSON is malformed: ").partition(" - at ")[0]
    if problem == "Input data was truncated":
        problem = f"unexpected end (byte {len(body)})"
    raise _refuse_json(f"invalid JSON: {problem}") from None


_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a whole pair
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})"  # half a pair
    rb"|.)",  # any other escape, consumed with its backslash
    re.DOTALL,
)


def _replace_lone_surrogates(body: bytes) -> bytes:
    r"""Replace escapes of lone surrogates (``\ud83d`` without its other half) by U+FFFD.

    JavaScript clients send them when they cut a text inside a character. Go's decoder, and so the reference, replaces
    them in the same way.
    """
    # Group 1 is half a pair without the backslash before it. Whole pairs and other escapes stay as they are.
    return _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], body)
