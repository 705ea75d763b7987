"""The members of a JSON object as they stand in its bytes: to change one of them and copy all others unread.

A body of a megabyte has a handful of top-level members, of which one or two are cgw's to set. What stands between and
inside the others (blanks, escapes, numbers of any length, keys that occur twice deeper inside) stays as the client
wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from attrs import frozen

MAX_MEMBERS = 1024
"""The most top-level members of an object: each takes about a microsecond, between which no other task runs."""

# A key, with the blanks and the colon around it. Unrolled, so that it takes linear time and no stack.
_KEY = re.compile(rb'[ \t\r\n]*("[^"\\]*(?:\\.[^"\\]*)*")[ \t\r\n]*:[ \t\r\n]*', re.DOTALL)
_AFTER_VALUE = re.compile(rb"[ \t\r\n]*([,}])")

_decode_values = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_key = msgspec.json.Decoder(str).decode


class UnusualObject(ValueError):
    """An object whose members cannot be told apart: it has too many, or one of them twice (``name``)."""

    def __init__(self, problem: str, name: str | None = None) -> None:
        super().__init__(problem)
        self.name = name


@frozen
class Member:
    """One member: where its key begins, where its value begins, and where that ends."""

    start: int
    value_start: int
    end: int


def find_members(body: bytes) -> dict[str, Member]:
    """Return the top-level members of a JSON object by their names, in order. Nothing of their values is decoded.

    Raises :exc:`UnusualObject` for more than :data:`MAX_MEMBERS` members and for a name that occurs twice: parsers
    differ in which of them counts. Raises :exc:`msgspec.MsgspecError`, :exc:`ValueError` or :exc:`RecursionError` for
    anything else than an object; text that is not UTF-8 may pass.
    """
    values = _decode_values(body)  # finds the ends of values at some gigabytes a second
    if len(values) > MAX_MEMBERS:
        raise UnusualObject(f"it has {len(values)} fields, at most {MAX_MEMBERS} are accepted")
    members: dict[str, Member] = {}
    at = body.index(b"{") + 1
    for _ in values:
        key = _KEY.match(body, at)
        if key is None:
            raise ValueError("the object has no key where one was expected")
        name = _decode_key(key[1])
        value = memoryview(values[name])
        end = key.end() + len(value)
        after = _AFTER_VALUE.match(body, end)
        # Of a name that occurs twice only the last value was decoded, so another one stands here, or one remains. Not
        # `view == value`: that compares views number by number, in fifty times the time, and a copy of a megabyte
        # costs more than decoding it.
        if name in members or after is None or not body.startswith(value, key.end()):
            raise UnusualObject("it occurs twice", name)
        members[name] = Member(key.start(1), key.end(), end)
        at = after.end()
    if members and body[at - 1 : at] != b"}":
        raise _find_repeated(body, at, members)
    return members


def _find_repeated(body: bytes, at: int, members: Mapping[str, Member]) -> UnusualObject:
    # All different names were seen, so the next one is among them.
    key = _KEY.match(body, at)
    name = None if key is None else _decode_key(key[1])
    return UnusualObject("it occurs twice", name if name in members else None)


def replace_members(body: bytes, members: Mapping[str, Member], changes: Mapping[str, bytes | None]) -> bytes:
    """Return ``body`` with the values of ``changes``, in JSON, instead of its own; ``None`` removes a member.

    ``members`` are those of ``body``. A member that is not there is added as the last one. All other bytes are copied.
    """
    added = [(name, value) for name, value in changes.items() if value is not None and name not in members]
    if not added and not changes.keys() & members.keys():
        return body
    ordered = list(members.items())
    kept = [index for index, (name, _) in enumerate(ordered) if changes.get(name, b"") is not None]
    view = memoryview(body)
    start, end = (ordered[0][1].start, ordered[-1][1].end) if ordered else (body.index(b"{") + 1,) * 2
    pieces: list[bytes | memoryview] = [view[:start]]
    copied = start
    for position, index in enumerate(kept):
        name, member = ordered[index]
        if position and kept[position - 1] != index - 1:
            # Members before this one are left out, with what stands behind each of them.
            pieces.append(view[copied : ordered[kept[position - 1] + 1][1].start])
            copied = member.start
        elif not position:
            copied = member.start
        if (value := changes.get(name)) is not None:
            pieces += (view[copied : member.value_start], value)
            copied = member.end
    if kept:
        pieces.append(view[copied : ordered[kept[-1]][1].end])
    for number, (name, value) in enumerate(added):
        separator = b"," if kept or number else b""
        pieces += (separator + msgspec.json.encode(name) + b":", value)
    pieces.append(view[end:])
    return b"".join(pieces)
