"""Request bodies: one JSON parse, one structured look at what the gateway must know, one serialisation.

A dialect describes the API's fields as an attrs class. :class:`BodyReader` decodes the bytes, structures the object
with cattrs into that class, and keeps the decoded object beside it: what goes upstream is built from the decoded
values, so that numbers and the parts that are none of the gateway's business come out as they went in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Generic, NewType, NoReturn, TypeVar

import attrs
import cattrs
import msgspec
from cattrs.cols import is_sequence, list_structure_factory
from cattrs.gen import make_dict_structure_fn

from cgw.errors import Refusal

MAX_PROBLEMS_TOLD = 10
MAX_INTEGER = 2**63 - 1
"""The largest number in a field that is known to hold an integer; the reference's language has the same bound."""

JsonObject = NewType("JsonObject", dict[str, Any])
"""An object whose inside is the provider's to check."""
JsonList = NewType("JsonList", list[Any])
"""A list whose inside is the provider's to check."""
StringOrStrings = NewType("StringOrStrings", object)
"""A string, or a list of strings."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()

T = TypeVar("T")

_Structure = Callable[[Any, Any], Any]


@attrs.frozen
class Content:
    """A message's content, checked: ``raw`` is a string, a list of objects that each have a ``type``, or ``None``."""

    raw: str | list[dict[str, Any]] | None
    character_count: int
    """The length of all its text, in code points."""


class Mismatch(ValueError):
    """A value of the wrong type. ``path`` leads from the value that was being checked to the one that is wrong."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path


def name_of_type(value: object) -> str:
    """What JSON calls a decoded value, with its article: for error texts, which never repeat the value itself."""
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


def _check_string(value: object, _: type) -> str:
    return value if isinstance(value, str) else _expected("a string", value)


def _check_boolean(value: object, _: type) -> bool:
    return value if isinstance(value, bool) else _expected("true or false", value)


def _check_integer(value: object, _: type) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if -MAX_INTEGER <= value <= MAX_INTEGER:
            return value
        raise Mismatch("number out of range")
    if isinstance(value, float):
        raise Mismatch("expected an integer, got a fraction")
    _expected("an integer", value)


def _check_number(value: object, _: type) -> float:
    # The number as it was sent: an integer stays one, however large.
    return value if isinstance(value, int | float) and not isinstance(value, bool) else _expected("a number", value)


def _check_object(value: object, _: type) -> JsonObject:
    return JsonObject(value) if isinstance(value, dict) else _expected("an object", value)


def _check_list(value: object, _: type) -> JsonList:
    return JsonList(value) if isinstance(value, list) else _expected("a list", value)


def _check_string_or_strings(value: object, _: type) -> StringOrStrings:
    if not isinstance(value, str | list):
        _expected("a string or a list of strings", value)
    if isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, str):
                _expected("a string", item, f"[{index}]")
    return StringOrStrings(value)


def _check_content(value: object, _: type) -> Content:
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
        elif kind == "tool_result":
            count += _count_tool_result(part.get("content"))
        elif not isinstance(kind, str):
            _expected_string_in(part, "type", index)
    return Content(value, count)


def _expected_string_in(part: dict[str, Any], name: str, index: int) -> NoReturn:
    path = f"[{index}].{name}"
    if name not in part:
        raise Mismatch("required field is missing", path)
    _expected("a string", part[name], path)


def _count_tool_result(content: object) -> int:
    """The length of a tool result's text (Anthropic's Messages API); its shape is the provider's to check."""
    if isinstance(content, str):
        return len(content)
    texts = (part.get("text") for part in content if isinstance(part, dict)) if isinstance(content, list) else ()
    return sum(len(text) for text in texts if isinstance(text, str))


_CHECKS: tuple[tuple[Any, Callable[[object, type], Any]], ...] = (
    (str, _check_string),
    (bool, _check_boolean),
    (int, _check_integer),
    (float, _check_number),
    (JsonObject, _check_object),
    (JsonList, _check_list),
    (StringOrStrings, _check_string_or_strings),
    (Content, _check_content),
)


def _make_converter(classes: Iterable[type], *, all_problems: bool) -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=all_problems)
    for kind, check in _CHECKS:
        converter.register_structure_hook(kind, check)
    converter.register_structure_hook_factory(is_sequence, _structure_list)
    for cls in classes:
        structure: _Structure = make_dict_structure_fn(cls, converter)
        converter.register_structure_hook(cls, _require(dict, "an object", structure))
    return converter


def _require(kind: type, what: str, structure: _Structure) -> _Structure:
    """``structure``, but only for decoded values of this very kind: cattrs itself takes any iterable for a list."""

    def structure_kind(value: object, cls: Any) -> Any:
        return structure(value, cls) if isinstance(value, kind) else _expected(what, value)

    return structure_kind


def _structure_list(cls: Any, converter: cattrs.BaseConverter) -> _Structure:
    return _require(list, "a list", list_structure_factory(cls, converter))


class BodyReader(Generic[T]):
    """Reads request bodies of one shape; made once for each dialect, as cattrs compiles its functions here.

    ``parts`` are the attrs classes within ``cls``, innermost first. A good body is structured without cattrs'
    bookkeeping of paths; a bad one is structured once more with it, to name all that is wrong.
    """

    def __init__(self, cls: type[T], *parts: type) -> None:
        self._cls = cls
        self._converter = _make_converter((*parts, cls), all_problems=False)
        self._explainer = _make_converter((*parts, cls), all_problems=True)

    def read(self, body: bytes) -> tuple[T, dict[str, Any]]:
        """The structured body, and the decoded object it came from.

        Raises :exc:`~cgw.errors.Refusal` (400) for anything but one JSON object (RFC 8259, nothing after it; of
        duplicate keys the last counts) whose known fields have their types. A field that is ``null`` counts as
        absent where it may be absent.
        """
        raw = decode_object(body)
        try:
            return self._converter.structure(raw, self._cls), raw
        except (Mismatch, KeyError, TypeError, ValueError):
            raise self._explain(raw) from None

    def _explain(self, raw: dict[str, Any]) -> Refusal:
        try:
            self._explainer.structure(raw, self._cls)
        except (cattrs.BaseValidationError, Mismatch, KeyError, TypeError, ValueError) as error:
            problems = list(_list_problems(error, ""))
        else:
            raise AssertionError("what the one converter refuses the other does too")
        told = "; ".join(f"{path}: {problem}" for path, problem in problems[:MAX_PROBLEMS_TOLD])
        more = len(problems) - MAX_PROBLEMS_TOLD
        if more > 0:
            told += f"; and {more} more"
        return Refusal(400, f"failed to parse request body: {told}", param=problems[0][0])


def _list_problems(error: BaseException, path: str) -> Iterable[tuple[str, str]]:
    """Walk cattrs' groups of errors; the notes that it leaves on them tell the way through the object."""
    if isinstance(error, cattrs.ClassValidationError):
        for inner, note in error.group_exceptions()[0]:
            yield from _list_problems(inner, f"{path}.{note.name}" if path else note.name)
        yield from ((path, str(inner)) for inner in error.group_exceptions()[1])
    elif isinstance(error, cattrs.IterableValidationError):
        for inner, index_note in error.group_exceptions()[0]:
            yield from _list_problems(inner, f"{path}[{index_note.index}]")
        yield from ((path, str(inner)) for inner in error.group_exceptions()[1])
    elif isinstance(error, KeyError):
        yield path, "required field is missing"
    elif isinstance(error, Mismatch):
        yield path + error.path, error.problem
    else:
        yield path, "wrong type"


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object from UTF-8. Raises :exc:`~cgw.errors.Refusal` (400) that says what is wrong, and where."""
    try:
        value = _decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        value = _decode_again(body, error)
    if not isinstance(value, dict):
        raise Refusal(400, f"failed to parse request body: expected a JSON object, got {name_of_type(value)}")
    return value


def encode_object(value: dict[str, Any]) -> bytes:
    """Serialise a body for the upstream. Raises :exc:`~cgw.errors.Refusal` (400) if it is nested too deeply."""
    try:
        return _encoder.encode(value)
    except RecursionError:
        raise _refuse_json("nested too deeply") from None


def keep_fields(value: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """A copy of ``value`` with only the fields in ``names``, and without those that are ``null``."""
    return {name: item for name, item in value.items() if name in names and item is not None}


def keep_fields_of_each(values: list[dict[str, Any]], names: frozenset[str]) -> list[dict[str, Any]]:
    """The objects with only the fields in ``names``, ``null`` or not; an object that has no others is not copied."""
    return [
        value if value.keys() <= names else {name: item for name, item in value.items() if name in names}
        for value in values
    ]


def _refuse_json(problem: str) -> Refusal:
    return Refusal(400, f"failed to parse request body: {problem}")


def _decode_again(body: bytes, error: Exception) -> Any:
    """The second look at a body that could not be decoded: mend half surrogate pairs, or explain."""
    if isinstance(error, RecursionError):
        raise _refuse_json("nested too deeply") from None
    if not body.strip():
        raise _refuse_json("the body is empty, expected a JSON object") from None
    try:
        body.decode()
    except UnicodeDecodeError as not_utf8:
        raise _refuse_json(f"not valid UTF-8 (byte {not_utf8.start})") from None
    mended = _mend_surrogates(body)
    if mended != body:
        try:
            return _decoder.decode(mended)
        except RecursionError:
            raise _refuse_json("nested too deeply") from None
        except (msgspec.DecodeError, ValueError) as another:
            error = another
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


def _mend_surrogates(body: bytes) -> bytes:
    r"""Replace escaped halves of surrogate pairs (``\ud83d`` alone) by U+FFFD.

    JavaScript clients send them when they cut a text within a character; the reference lets them through so, as
    Go's decoder does.
    """
    return _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], body)
