"""Request bodies: decode the JSON, and check the known fields.

A dialect declares the API's fields as an attrs class. :class:`BodyReader` decodes the bytes and structures the object
into that class, and also returns the decoded object. :mod:`cgw.providers.json_body` builds the upstream's body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, Generic, NewType, NoReturn, TypeVar

import attrs
import cattrs
import msgspec
from cattrs.cols import is_sequence, list_structure_factory
from cattrs.gen import make_dict_structure_fn

from cgw.errors import Refusal
from cgw.providers.body_structure import MAX_ITEMS, build_converter
from cgw.providers.json_body import ClientBody, decode_object, name_of_type

# Bounds the response: each of a thousand messages may have a problem.
MAX_REPORTED_PROBLEMS = 10
MAX_EXPLAINED = 2000
"""The most items of lists that are looked at to explain what is wrong with a body: 60 microseconds and 3 KB for each
that is wrong."""
MAX_INTEGER = 2**63 - 1
"""The largest number in an integer field: that of an int64, as in the reference."""

# Types of their own, because cattrs finds a hook by the type (see _CHECKS).
JsonObject = NewType("JsonObject", dict[str, Any])
"""An object whose fields only the provider checks."""
JsonList = NewType("JsonList", list[Any])
"""A list whose items only the provider checks."""
StringOrStrings = NewType("StringOrStrings", object)
"""A string, or a list of strings."""

Content = NewType("Content", object)
"""The content of a message: a string, or a list of :class:`ContentPart`. :func:`count_content` measures it."""

T = TypeVar("T")

_Structure = Callable[[Any, Any], Any]


class ContentPart(msgspec.Struct, gc=False):
    """A part of a content. Only texts and the results of tools are read; the provider checks all others."""

    type: str
    text: Any = None
    """A string where the ``type`` is ``text``, which :func:`count_content` makes sure of."""
    content: Any = None


class Mismatch(ValueError):
    """A value of the wrong type. ``path`` is that of the wrong part inside the checked value, or empty."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path


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
        return Content(value)
    if not isinstance(value, list):
        _expected("a string or a list of parts", value)
    return Content([_check_part(part, index) for index, part in enumerate(value)])


def _check_part(part: object, index: int) -> ContentPart:
    if not isinstance(part, dict):
        _expected("an object", part, f"[{index}]")
    kind, text = part.get("type"), part.get("text")
    if not isinstance(kind, str):
        _expected_string_in(part, "type", index)
    if kind == "text" and not isinstance(text, str):
        _expected_string_in(part, "text", index)
    return ContentPart(kind, text, part.get("content"))


def _expected_string_in(part: dict[str, Any], name: str, index: int) -> NoReturn:
    path = f"[{index}].{name}"
    if name not in part:
        raise Mismatch("required field is missing", path)
    _expected("a string", part[name], path)


def count_content(content: Any) -> int:
    """Return the length of all text of a :data:`Content`, in code points; ``None`` has none.

    Raises :exc:`TypeError` for a part of the type ``text`` without a text.
    """
    if isinstance(content, str):
        return len(content)
    count = 0
    for part in content or ():
        if part.type == "text":
            if not isinstance(part.text, str):
                raise TypeError("a part of the type text has no text")
            count += len(part.text)
        # Anthropic's; with OpenAI, the result of a tool is a message of its own.
        elif part.type == "tool_result":
            count += _count_tool_result(part.content)
    return count


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

_TYPES: dict[Any, Any] = {
    str: str,
    bool: bool,
    int: Annotated[int, msgspec.Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)],
    float: int | float,  # not float alone: see _check_number
    JsonObject: dict[str, Any],
    JsonList: list[Any],
    StringOrStrings: str | list[str],
    Content: str | list[ContentPart],
}
"""The same checks, as types for msgspec."""


@attrs.define
class _ItemBudget:
    """The number of items of lists that may still be explained."""

    left: int = MAX_EXPLAINED

    def take(self, value: list[Any]) -> None:
        if len(value) > MAX_ITEMS:
            raise Mismatch(f"{len(value)} items, at most {MAX_ITEMS} are accepted")
        self.left -= len(value)
        if self.left < 0:
            raise Mismatch(f"these items were not looked at, beyond {MAX_EXPLAINED} others")


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

    ``parts`` are the attrs classes inside ``cls``, innermost first. ``count`` returns the characters of a body's text,
    see :meth:`read_counted`.
    """

    def __init__(self, cls: type[T], *parts: type, count: Callable[[T], int] | None = None) -> None:
        self._cls = cls
        self._count: Callable[[T], int] = count or (lambda _: 0)
        self.structure: Callable[[dict[str, Any]], T] = build_converter(cls, parts, _TYPES)
        """Structures a decoded object: into a struct with the attributes of ``cls``, which is made without a line of
        Python. Raises :exc:`msgspec.ValidationError`, without a reason."""
        # cattrs records the path of each problem, which is slow; so it gets the bodies that are not valid only.
        self._budget = _ItemBudget()
        self._explainer = _make_converter((*parts, cls), self._budget)

    def read(self, body: ClientBody) -> tuple[T, dict[str, Any]]:
        """Return the structured body, and the decoded object that it was made from.

        Raises :exc:`~cgw.errors.Refusal` (400) for anything but one JSON object (RFC 8259, with nothing after it)
        whose known fields have their types. The last of duplicate keys counts. A ``null`` counts as an absent field if
        the field is optional.
        """
        raw = decode_object(body)
        try:
            return self.structure(raw), raw
        except msgspec.ValidationError:
            return self.structure_or_explain(raw), raw

    def read_counted(self, body: ClientBody) -> tuple[T, dict[str, Any], int]:
        """Return what :meth:`read` does, and the number of characters of the body's text, in code points.

        Counting completes the check of a body with :data:`Content`.
        """
        raw = decode_object(body)
        try:
            parsed = self.structure(raw)
            return parsed, raw, self._count(parsed)
        except (msgspec.ValidationError, TypeError):
            parsed = self.structure_or_explain(raw)
            return parsed, raw, self._count(parsed)

    def read_object(self, raw: dict[str, Any]) -> T:
        """Return the structured body of a decoded object, as :meth:`read` does."""
        try:
            return self.structure(raw)
        except msgspec.ValidationError:
            return self.structure_or_explain(raw)

    def structure_or_explain(self, raw: dict[str, Any]) -> T:
        """Return the structured body of a decoded object, slowly. Raises :exc:`~cgw.errors.Refusal` with all problems.

        ``read`` leaves to it all objects that ``structure`` does not accept.
        """
        self._budget.left = MAX_EXPLAINED
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
