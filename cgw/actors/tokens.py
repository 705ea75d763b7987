"""Tokens: of static actors, stored only as SHA-256, and of Sourcegraph's users and instances, derived from theirs."""

from __future__ import annotations

import hashlib
import json
import re
import secrets

PREFIX = "cgw_"

ACTOR_ID = re.compile(r"[A-Za-z0-9._@:-]{1,128}")
ACTOR_ID_RULE = "must consist of 1 to 128 letters, digits and . _ - @ :"
"""Ids are part of keys in Redis, of log lines and of URLs, so they have none of their special characters."""


def is_valid_name(name: str) -> bool:
    """Return whether ``name`` follows :data:`NAME_RULE`."""
    return name.isprintable() and len(name) <= 200  # shown in logs and on terminals


def clean_name(name: str) -> str:
    """Return a name from a source of which nobody has checked the spelling, so that it follows :data:`NAME_RULE`."""
    return "".join(character if character.isprintable() else " " for character in name[:200]).strip()


NAME_RULE = "must be at most 200 characters, none of them a control character"


def new_token() -> str:
    """Generate a token: ``cgw_`` and 64 hex digits, 256 random bits from the system."""
    return PREFIX + secrets.token_hex(32)


def hash_token(token: str) -> str:
    """Return the SHA-256 of a token in lower-case hex, which is what is stored and looked up. Never raises.

    ``token`` may hold bytes that are not UTF-8, as surrogate escapes; they are hashed as they came.
    """
    # Without salt or stretching: tokens are random and long, so they cannot be guessed from their hash.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


# An access token of Sourcegraph: 20 bytes, perhaps with a prefix, and with the instance that it is for.
_ACCESS_TOKEN = re.compile(r"(?:(?:sgp_|sgph_)(?:[A-Za-z0-9]+_)?)?([0-9A-Fa-f]{40})")
_STORED_HASH = re.compile(r"(?:\\x)?([0-9A-Fa-f]{64})")


def derive_user_token(access_token: str) -> str:
    """Return the ``sgd_`` token of the user of an access token of Sourcegraph.com (the reference's §2.6).

    Raises :exc:`ValueError` for anything else, with a text that follows "the access token" and does not repeat it.
    """
    match = _ACCESS_TOKEN.fullmatch(access_token)
    if match is None:
        raise ValueError("must be sgp_ and 40 hex digits, perhaps with the instance's id in between")
    return derive_user_token_from_hash(hashlib.sha256(bytes.fromhex(match[1])).hexdigest())


def derive_user_token_from_hash(stored_hash: str) -> str:
    """Return the same from the SHA-256 that Sourcegraph stores of an access token, in hex (``\\x…`` as psql shows it).

    Raises :exc:`ValueError` as :func:`derive_user_token`.
    """
    match = _STORED_HASH.fullmatch(stored_hash)
    if match is None:
        raise ValueError("must have 64 hex digits")
    return "sgd_" + hashlib.sha256(bytes.fromhex(match[1])).hexdigest()


def derive_subscription_token(licence_key: str) -> str:
    """Return the ``slk_`` token of the product subscription that ``licence_key`` is of (the reference's §2.7)."""
    return "slk_" + hash_token(licence_key)


def build_entry(actor_id: str, name: str, token_sha256: str) -> str:
    """Build the entry to paste into ``CODY_GATEWAY_ACTORS_FILE`` (TOML), with limits that suit a small team."""
    # A JSON string is a TOML string, too, except that JSON may escape a character as two surrogates: so the name is not
    # escaped to ASCII. Ids are ASCII.
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
