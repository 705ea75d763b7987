"""JSON of request bodies: decode a client's, and build the upstream's.

On routes for SDKs the upstream's body is the client's own bytes, in which :func:`change_fields` sets what the gateway
decides. On the reference's routes it is built from the decoded object, so that numbers and unknown parts are passed on
unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from cgw.errors import Refusal
from cgw.providers.body_density import MAX_UNCOUNTED_BYTES, check_density
from cgw.providers.split_body import SplitBody, split_body
from cgw.wire.json_members import MAX_MEMBERS, Member, UnusualObject, find_members, replace_members

LARGE_BODY_BYTES = 16 * 1024
"""From this size on, messages that are passed on unchanged are copied instead of encoded."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


ClientBody = bytes | SplitBody
"""A client's body: as it came, or large and split, which makes a difference to the time that it takes only."""


def split_large(body: bytes, name: str) -> ClientBody:
    """Return a large body split around the list in its field ``name`` if that can be done, and any other as it is.

    Raises :exc:`~cgw.errors.Refusal` as :func:`decode_object` does.
    """
    return body if len(body) < SMALL_BODY_BYTES else split_body(body, name) or body


def decode_object(body: ClientBody) -> dict[str, Any]:
    """Decode a JSON object from UTF-8. Raises :exc:`~cgw.errors.Refusal` (400) with the problem and its position.

    So are bodies with more parts than :func:`~cgw.providers.body_density.check_density` allows, and with more than a
    thousand fields, which would hold up all other requests.
    """
    if isinstance(body, SplitBody):
        value: Any = body.raw
    else:
        if len(body) > MAX_UNCOUNTED_BYTES:
            check_density(body)
        try:
            value = _decode(body)
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
        return _encode(value)
    except RecursionError:
        raise _refuse_json("nested too deeply") from None


class _Messages(msgspec.Struct, gc=False):
    messages: msgspec.Raw = msgspec.Raw()


SMALL_BODY_BYTES = 64 * 1024
"""Bodies up to this size are encoded once to see whether they are compact: in a twelfth of the time of finding where
each field stands. A large one would be copied for it."""

# Any, as other values are put beside those that were decoded.
_decode_raw: Callable[[Any], dict[str, Any]] = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_messages_decoder = msgspec.json.Decoder(_Messages)


def encode_with_messages(value: dict[str, Any], body: ClientBody) -> bytes:
    """Encode a body for the upstream, as :func:`encode_object`; its ``messages`` are those of the client's ``body``.

    Those of a large body are copied, as they came, which takes a tenth to a half of the time that encoding them takes.
    All other fields are encoded, so that no key occurs twice beside them: parsers differ in which one counts.
    """
    if len(body) >= LARGE_BODY_BYTES:
        if isinstance(body, SplitBody):
            return encode_object({**value, "messages": msgspec.Raw(body.value)})
        try:
            messages = _messages_decoder.decode(body).messages
        except (msgspec.MsgspecError, ValueError, RecursionError):
            # Lone surrogates: the body was only decoded after they were replaced.
            return encode_object(value)
        if messages:
            return encode_object({**value, "messages": messages})
    return encode_object(value)


def change_fields(body: ClientBody, changes: Mapping[str, Any], checked: Collection[str] = ()) -> bytes:
    """Return a client's body with the top-level fields of ``changes`` set, or removed where the value is ``None``.

    ``body`` was decoded by a :class:`BodyReader`. All other bytes are the client's, a large body is copied once and
    not encoded; only lone surrogates, with which it is not valid, are replaced. A field that is there twice anywhere
    at the top is refused: which of the two counts would be for the upstream to choose, and the gateway has checked
    the last. So is another field or one of ``checked`` in other letters, as in ``Model``: servers in Go take either.
    Raises :exc:`~cgw.errors.Refusal` (400).
    """
    if isinstance(body, SplitBody):
        return body.fill(change_fields(body.skeleton, changes, checked))
    if len(body) < SMALL_BODY_BYTES and (changed := _change_compact(body, changes, checked)) is not None:
        return changed
    members = _find_members(body)
    if members is None:
        # The body was only decoded after they were replaced.
        body = _replace_lone_surrogates(body)
        members = _find_members(body)
    if members is None:
        raise _refuse_json("its fields cannot be told apart")
    _check_letters(members, checked)
    encoded = {name: None if value is None else _encode(value) for name, value in changes.items()}
    return replace_members(body, members, encoded)


def _change_compact(body: bytes, changes: Mapping[str, Any], checked: Collection[str]) -> bytes | None:
    """Return what :func:`change_fields` does for a body without blanks between its fields, as most clients send it.

    ``None`` for any other. Such a body is what its fields give when they are encoded as they stand there: then no field
    occurs twice, and nothing stands between them.
    """
    try:
        values = _decode_raw(body)
        if _encode(values) != body:
            return None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    letters = "".join(values)
    # The names of most APIs: nothing to fold in them.
    if not (letters.islower() and letters.isascii()):
        _check_letters(values, checked)
    for name, value in changes.items():
        if value is None:
            values.pop(name, None)
        else:
            values[name] = value
    return _encode(values)


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
    if value.keys() <= names and None not in value.values():
        return value.copy()
    return {name: item for name, item in value.items() if name in names and item is not None}


def keep_fields_of_each(values: list[dict[str, Any]], names: frozenset[str]) -> list[dict[str, Any]]:
    """Return the objects with the fields in ``names`` only; ``values`` itself if they have no others."""
    # One union of all keys: no line of Python for each of a thousand messages.
    if names.union(*values) == names:
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
            return _decode(replaced)
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
