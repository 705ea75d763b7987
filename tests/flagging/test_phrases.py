"""Searching text for phrases, in slices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.flagging.phrases import PhraseScan, choose_slice_characters, fold
from cgw.flagging.slices import PIECES_PER_SLICE, SLICE_CHARACTERS, slice_text

TEXTS = st.text(alphabet="abAB \u0130\u03a3\u03c2é👋", max_size=40)


@given(
    pieces=st.lists(TEXTS, max_size=8),
    phrases=st.lists(st.text(alphabet="ab \u03a3é", min_size=1, max_size=6), max_size=4),
    size=st.integers(1, 20),
)
def test_s9_2_slices_hide_no_phrase(pieces: list[str], phrases: list[str], size: int) -> None:
    """What is found is the first phrase of the list that the whole text has, however it is cut."""
    folded = [fold(phrase) for phrase in phrases]
    scan = PhraseScan(folded)
    for text in slice_text(pieces, size):
        scan.feed(fold(text))
    whole = fold("".join(pieces))
    assert scan.found == next((phrase for phrase in folded if phrase in whole), None)


@given(pieces=st.lists(st.text(max_size=30), max_size=30), size=st.integers(1, 40))
def test_slices_are_the_text_and_bounded(pieces: list[str], size: int) -> None:
    """Together they are the text, and none is longer than it may be."""
    slices = list(slice_text(pieces, size))
    assert "".join(slices) == "".join(pieces)
    assert all(len(text) <= size for text in slices)


def test_a_slice_ends_after_so_many_pieces() -> None:
    """Also pieces without any text are work, and they must not be read in one turn."""
    taken = 0

    def read() -> object:
        nonlocal taken
        for _ in range(10 * PIECES_PER_SLICE):
            taken += 1
            yield ""

    slices = slice_text(read())  # type: ignore[arg-type]
    next(slices)
    assert taken == PIECES_PER_SLICE


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("\u03a3Ω\u03a3", "\u03c3ω\u03c2"),
        ("\u03a3Ω\u03a3.", "\u03c3ω\u03c3"),
        ("\u0130stanbul", "istanbul"),
        ("ÄRGER", "ärger"),
        ("ABC", "aBc"),
    ],
)
def test_s9_2_case_does_not_matter(text: str, phrase: str) -> None:
    """Nor does the form of a sigma, or a dot on a capital I, which lower-casing depends on."""
    scan = PhraseScan([fold(phrase)])
    scan.feed(fold(text))
    assert scan.found is not None


def test_s9_2_the_first_phrase_of_the_list_is_told() -> None:
    """As in the reference, where the list is searched in its order."""
    scan = PhraseScan(["second", "first"])
    scan.feed("first, then ")
    scan.feed("second")
    assert scan.found == "second"


def test_many_phrases_make_slices_smaller() -> None:
    """The work of one turn is characters times phrases."""
    assert choose_slice_characters([], ["a"]) == SLICE_CHARACTERS
    assert choose_slice_characters(["a"] * 50, ["b"] * 50) == 2000
    assert choose_slice_characters(["a"] * 1000) == 256
