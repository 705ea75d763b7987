"""A small vocabulary in the form of tiktoken's files."""

from __future__ import annotations

import base64
from pathlib import Path

# Every byte, and some words of English, each made of two earlier ones.
MERGES = [b"th", b"the", b" t", b" th", b" the", b"an", b"and", b" a", b"in", b"er", b"  "]


def write_vocabulary(path: Path) -> Path:
    """Write a small vocabulary in the form of tiktoken's files."""
    tokens = [bytes([byte]) for byte in range(256)] + MERGES
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)))
    return path
