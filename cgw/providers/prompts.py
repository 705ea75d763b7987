"""The text of prompts, for flagging: read from the client's body, piece by piece, only where something is looked for.

Text is what the model reads: of messages, of tools' results and of the system prompt. *Other* text is everything else
in the body that the model may see: descriptions of tools, arguments of their calls, documents, schemas.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

# Bytes of images, audio and documents, and what only the provider can read.
_OPAQUE = frozenset({"data", "file_data", "url", "signature", "thoughtSignature", "encrypted_content"})

# The last two are those of OpenAI's Responses API.
_TEXT_TYPES = ("text", "input_text", "output_text")

_NO_LABELS: Mapping[str, str] = {}


# A Struct, because each exchange makes one.
class Prompt(msgspec.Struct, frozen=True, gc=False):
    """The prompt of a request whose decoded body is ``body``.

    Its text is in the fields ``system`` and ``messages``; ``content`` is the field of a message that has it. ``labels``
    are what each role's messages begin with in the flattened prompt. ``has_token_limits`` is true where the rules about
    tokens of prompts apply: for Anthropic, as in the reference.
    """

    body: Mapping[str, Any]
    system: str
    messages: str
    content: str = "content"
    labels: Mapping[str, str] = _NO_LABELS
    has_token_limits: bool = False

    @classmethod
    def of_text(cls, text: str) -> Prompt:
        """Return a prompt of Anthropic's Text Completions API, which is a text."""
        return cls({"prompt": text}, "prompt", "messages", has_token_limits=True)

    def __repr__(self) -> str:
        return f"Prompt({self.message_count} messages)"  # not the text

    @property
    def message_count(self) -> int:
        """The number of messages."""
        messages = self.body.get(self.messages)
        return len(messages) if isinstance(messages, list) else 1

    def read_text(self) -> Iterator[str]:
        """Yield the flattened prompt, in pieces. They may be empty: each stands for some work."""
        end = "\n\n" if self.labels else "\n"
        system = self.body.get(self.system)
        if system:
            yield self.labels.get("system", "")
            yield from _read_content(system)
            yield end
        messages = self.body.get(self.messages)
        if isinstance(messages, str):  # OpenAI's Responses API: a single message of the user's
            yield self.labels.get("user", "")
            yield messages
            yield end
        for message in _list_messages(messages):
            yield self.labels.get(message.get("role") or "", "")
            yield from _read_content(message.get(self.content))
            yield end

    def read_other_text(self) -> Iterator[str]:
        """Yield all other text of the body, in pieces, with a line's end after each; some are empty, as above."""
        for name, value in self.body.items():
            if name not in (self.system, self.messages):
                yield name
                yield "\n"
                yield from _walk(value)
        yield from _read_other_parts(self.body.get(self.system))
        for message in _list_messages(self.body.get(self.messages)):
            yield ""
            for name, value in message.items():
                if name not in ("role", self.content):
                    yield from _walk(value)
            yield from _read_other_parts(message.get(self.content))


def _list_messages(messages: Any) -> Iterator[Mapping[str, Any]]:
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            yield message


def _list_parts(content: Any) -> Iterator[Any]:
    if isinstance(content, dict):  # Google's system instruction
        content = content.get("parts")
    yield from content if isinstance(content, list) else ()


def _find_text(part: Any) -> str | None:
    # Google's parts have no type.
    text = part.get("text") if isinstance(part, dict) and part.get("type", "text") in _TEXT_TYPES else None
    return text if isinstance(text, str) else None


def _read_content(content: Any) -> Iterator[str]:
    """Yield the text of a content: a string, or parts whose texts are put together without anything in between."""
    if isinstance(content, str):
        yield content
        return
    for part in _list_parts(content):
        if isinstance(part, dict) and part.get("type") == "tool_result":
            yield ""
            result = part.get("content")
            if isinstance(result, str):
                yield result
            for inner in _list_parts(result):
                yield _find_text(inner) or ""
        else:
            yield _find_text(part) or ""


def _read_other_parts(content: Any) -> Iterator[str]:
    """Yield the strings in the parts of a content that are not text."""
    for part in _list_parts(content):
        if _find_text(part) is None:
            yield from _walk(part)
        else:
            yield ""


def _walk(value: Any) -> Iterator[str]:
    """Yield all strings in a decoded value, keys included: the names of a schema's properties are read, too."""
    stack = [iter((value,))]
    while stack:
        for item in stack[-1]:
            if isinstance(item, str):
                yield item
                yield "\n"
                continue
            yield ""  # this is work, too
            if isinstance(item, dict):
                stack.append(_list_items(item))
                break
            if isinstance(item, list):
                stack.append(iter(item))
                break
        else:
            stack.pop()


def _list_items(value: dict[str, Any]) -> Iterator[Any]:
    is_text = value.get("type") == "text"  # Anthropic's documents of plain text have theirs in "data"
    for name, item in value.items():
        yield name
        if is_text or name not in _OPAQUE or not isinstance(item, str):
            yield item
