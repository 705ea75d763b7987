"""Tokens of static actors: made once, shown once, kept only as SHA-256."""

from __future__ import annotations

import hashlib
import json
import re
import secrets

PREFIX = "cgw_"

ACTOR_ID = re.compile(r"[A-Za-z0-9._@:-]{1,128}")
ACTOR_ID_RULE = "must consist of 1 to 128 letters, digits and . _ - @ :"
"""An id is part of keys in Redis, of log lines and of URLs; so it has none of their special characters."""


def is_valid_name(name: str) -> bool:
    """Whether ``name`` fits :data:`NAME_RULE`: names are shown in logs and on terminals."""
    return name.isprintable() and len(name) <= 200


NAME_RULE = "must be at most 200 characters, none of them a control character"


def new_token() -> str:
    """A fresh token: ``cgw_`` and 64 hex digits, 256 bits from the system's randomness."""
    return PREFIX + secrets.token_hex(32)


def hash_token(token: str) -> str:
    """The SHA-256 of a token in lower-case hex: what is stored and looked up.

    Plain SHA-256 is enough, since tokens are random and long. What bytes of the header were no UTF-8 stays itself
    (as ``surrogateescape``), so this never raises.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def build_entry(actor_id: str, name: str, token_sha256: str) -> str:
    """The entry to paste into ``CODY_GATEWAY_ACTORS_FILE`` (TOML), with limits that suit a small team."""
    return f"""\
[[actor]]
id = {json.dumps(actor_id)}
name = {json.dumps(name, ensure_ascii=False)}
token_sha256 = ["{token_sha256}"]
access_enabled = true

[actor.limits.chat_completions]
limit = 1000
interval = "24h"
allowed_models = ["*"]

[actor.limits.code_completions]
limit = 10000
interval = "24h"
allowed_models = ["*"]
"""
