"""Recorded answers of both dialects, byte for byte."""

from __future__ import annotations

ANTHROPIC = b"""event: message_start
data: {"type":"message_start","message":{"id":"msg_1","role":"assistant","content":[],"usage":{"input_tokens":9}}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Gr\xc3\xbc\xc3\x9fe"}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":3}}

event: message_stop
data: {"type":"message_stop"}

"""

OPENAI = b"""data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant"}}]}\r
\r
data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hi \xf0\x9f\x91\x8b"}}]}\r
\r
data: {"id":"c1","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\r
\r
data: [DONE]\r
\r
"""

STREAMS = {"anthropic": ANTHROPIC, "openai": OPENAI}


def split_events(body: bytes) -> list[bytes]:
    """Cut ``body`` after each event, as a provider sends it."""
    separator = b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n"
    return [event + separator for event in body.split(separator) if event]


def encode_chunked(pieces: list[bytes]) -> bytes:
    """Encode ``pieces`` as the chunks of a whole chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def pick_cuts(data: bytes, *, each_byte: bool) -> list[int]:
    """Return where to cut ``data`` in two: at each byte, or where it matters.

    That is beside line ends, which end events, fields and chunks, inside characters of several bytes, and in the end,
    where a final marker is looked for; and at every eleventh byte, so that every kind of content is cut somewhere.
    """
    matters = {*range(0, len(data), 11), *range(len(data) - 60, len(data))}
    for position, byte in enumerate(data):
        if byte in b"\r\n" or byte >= 0x80:
            matters.update(range(position - 1, position + 3))
    return [cut for cut in range(1, len(data)) if each_byte or cut in matters]
