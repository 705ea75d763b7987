"""The progress of one segment: what was read of it, and what the sink has."""

from __future__ import annotations

from collections import deque

from attrs import define, field

from cgw.events.segments import Segment
from cgw.events.shipping.batches import Batch, SegmentReader


@define(eq=False)
class Sent:
    """A batch that is under way, or was answered."""

    batch: Batch
    is_answered: bool = False


@define(eq=False)
class Progress:
    """A claimed segment that is being shipped. ``acknowledged`` is the offset up to which the sink has all events.

    Batches are answered in any order; the offset moves over those that were answered without a gap.
    """

    segment: Segment
    reader: SegmentReader
    acknowledged: int
    is_read: bool = False
    """Nothing more will be read of it."""
    _sent: deque[Sent] = field(factory=deque, init=False)

    @property
    def is_done(self) -> bool:
        """True if the sink has everything that will be read of the segment."""
        return self.is_read and not self._sent

    @property
    def first_waiting(self) -> Batch | None:
        """The first batch without an answer."""
        return self._sent[0].batch if self._sent else None

    def begin(self, batch: Batch) -> Sent:
        """Note that a batch is under way; return what :meth:`end` takes."""
        sent = Sent(batch)
        self._sent.append(sent)
        return sent

    def end(self, sent: Sent) -> bool:
        """Note that a batch was answered; return whether :attr:`acknowledged` moved."""
        sent.is_answered = True
        before = self.acknowledged
        while self._sent and self._sent[0].is_answered:
            self.acknowledged = self._sent.popleft().batch.end
        return self.acknowledged != before
