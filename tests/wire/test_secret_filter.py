"""Masking of secrets in bodies that come in any pieces."""

from __future__ import annotations

import json
from itertools import pairwise
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from cgw.wire.secret_filter import BodySecrets

KEY = "sk-canary-of-the-tests"
LONGER = KEY + "-and-more"
ODD = 'p/ss"w\\rd ü'


def mask(secrets: list[str], pieces: list[bytes]) -> bytes:
    """Return what passes for ``pieces``; check that never more is held back than the longest secret less one."""
    secret_filter = BodySecrets.build(secrets).open_filter()
    assert secret_filter is not None
    longest = max(len(quote(secret, safe="")) for secret in secrets)
    fed = passed = b""
    for piece in pieces:
        fed += piece
        passed += secret_filter.feed(piece)
        assert len(fed) - len(passed) < longest
    return passed + secret_filter.close()


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut ``data`` at each of ``cuts``, modulo its length."""
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(at)]


PARTS = st.sampled_from([KEY, KEY[:5], KEY[3:], LONGER, LONGER[:-1], ODD, "Incorrect API key: ", "*", "s", "sk-", "\n"])


@given(st.lists(PARTS, max_size=8), st.lists(st.integers(0, 300), max_size=12))
def test_no_cut_lets_a_secret_pass(parts: list[str], cuts: list[int]) -> None:
    """However a body is cut, the result is that of the whole body: no secret in it, and the same length."""
    body = "".join(parts).encode()
    whole = mask([KEY, LONGER, ODD], [body])
    assert mask([KEY, LONGER, ODD], cut(body, cuts)) == whole
    assert len(whole) == len(body)
    assert not [secret for secret in (KEY, LONGER, ODD) if secret.encode() in whole]


@given(st.binary(max_size=100), st.lists(st.integers(0, 100), max_size=5))
def test_other_bodies_pass_unchanged(body: bytes, cuts: list[int]) -> None:
    """Without a secret in it, not a byte of a body changes."""
    assert mask([KEY], cut(body, cuts)) == body


def test_a_secret_is_found_in_every_byte_wise_body() -> None:
    """A key that comes byte by byte is masked, and what is around it stays."""
    body = f"a {LONGER}, a {KEY}.".encode()
    assert mask([KEY, LONGER], [bytes([byte]) for byte in body]) == b"a %b, a %b." % (
        b"*" * len(LONGER),
        b"*" * len(KEY),
    )


def test_escaped_forms_are_found() -> None:
    """A secret is masked as it stands in a JSON string and in a URL, too."""
    for form in (ODD, json.dumps(ODD)[1:-1], json.dumps(ODD)[1:-1].replace("/", "\\/"), quote(ODD, safe="")):
        data = form.encode()
        assert mask([ODD], [b"<", data[:3], data[3:], b">"]) == b"<" + b"*" * len(data) + b">"


def test_the_beginning_of_a_secret_at_the_end_passes() -> None:
    """What was held back goes out when the body ends, as it was no secret."""
    assert mask([KEY], [b"ends in " + KEY[:-1].encode()]) == b"ends in " + KEY[:-1].encode()


def test_short_values_and_none_need_no_filter() -> None:
    """A value that would occur in ordinary words is not masked."""
    assert BodySecrets.build(["short"]).open_filter() is None
    assert BodySecrets.build([]).open_filter() is None
    assert KEY not in repr(BodySecrets.build([KEY]))
