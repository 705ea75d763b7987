"""Searching a prompt for phrases, slice by slice. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cgw.flagging.slices import SLICE_CHARACTERS

_DOTTED_I = "\u0130"
_SIGMA, _FINAL_SIGMA = "\u03c3", "\u03c2"

# Characters times phrases, at up to 7 ns each: that is for text which agrees with the beginnings of many phrases.
_COMPARISONS = 200_000
_LEAST_CHARACTERS = 256


def fold(text: str) -> str:
    """Return ``text`` in lower case, each character by itself, as in the reference.

    Python's own lower case depends on what stands around a sigma, and makes two characters of a dotted I: then a phrase
    would be found or not according to where a slice ends.
    """
    if text.isascii():
        return text.lower()
    return text.replace(_DOTTED_I, "i").lower().replace(_FINAL_SIGMA, _SIGMA)


def choose_slice_characters(*lists: Sequence[str]) -> int:
    """Return how large slices may be, so that searching one for all phrases takes 1 ms or so."""
    count = sum(map(len, lists))
    return max(_LEAST_CHARACTERS, min(SLICE_CHARACTERS, _COMPARISONS // max(1, count)))


class PhraseScan:
    """Finds which of some folded ``phrases`` comes first in their list, of those that are in a text.

    The text is fed in slices; a phrase may lie across any number of them.
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        self._phrases = phrases
        self._overlap = max(map(len, phrases), default=1) - 1
        self._carry = ""
        self._found = len(phrases)

    @property
    def found(self) -> str | None:
        """The first phrase of the list that was seen; ``None`` if none was."""
        return self._phrases[self._found] if self._found < len(self._phrases) else None

    @property
    def is_over(self) -> bool:
        """True if no further text changes :attr:`found`."""
        return self._found == 0 or not self._phrases

    def feed(self, folded: str) -> None:
        """Go on with ``folded``, a slice of folded text."""
        if self.is_over:
            return
        window = self._carry + folded
        # Only phrases before the one that was found: the list's order decides, not the text's.
        for index in range(self._found):
            if self._phrases[index] in window:
                self._found = index
                break
        # So much of the window may be the beginning of a phrase.
        self._carry = window[-self._overlap :] if self._overlap else ""
