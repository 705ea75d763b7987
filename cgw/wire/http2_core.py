"""h2 as the engine uses it: made tolerant where it ends the connection for a fault of one stream, and bounded.

h2 treats every :exc:`~h2.exceptions.ProtocolError` as the end of the connection, also for faults that RFC 9113 §8.1.1
makes a stream's. So it never gets to see header fields (the decoder keeps them here, for checks of our own), and frames
that could make it raise without need are dealt with by :mod:`cgw.wire.http2_protocol` before.
"""

from __future__ import annotations

from collections.abc import Iterable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hpack import Decoder, Encoder, HeaderTuple
from hpack.exceptions import HPACKDecodingError, HPACKError, OversizedHeaderListError

from cgw.wire.heads import HTTP2_PREFACE
from cgw.wire.http2_bounds import Http2Bounds
from cgw.wire.http2_frames import MAX_FRAME_BYTES, Http2ConnectionError

HEADER_TABLE_BYTES = 4096
"""The dynamic tables of HPACK, ours and the client's: the protocol's initial value."""

CLOSED_STREAMS = 1000
"""How many ended streams are remembered, so that their late frames are told from nonsense."""

DECODED_MARGIN_BYTES = 16 * 1024
"""A list of fields that is over the bound by no more than this gets a 431; a larger one ends the connection, since
HPACK's state is lost with what is not decoded. It bounds what a block of references to the table ("HPACK bomb") makes.
"""

_MAX_SIZE_UPDATES = 2  # RFC 7541 §4.2: the smallest value and the last one


class _Connection(H2Connection):
    MAX_CLOSED_STREAMS = CLOSED_STREAMS  # h2's own 65,536 come to some 8 MiB per connection


class _FieldDecoder(Decoder):
    """Decodes for us, not for h2: h2 gets no field, so that it finds nothing to end the connection for.

    With fields it would do so for a bad ``content-length``, or for ``:status: 100``, whatever its settings say.
    """

    def __init__(self, max_header_list_size: int) -> None:
        super().__init__(max_header_list_size)
        self.fields: list[HeaderTuple] = []
        self.error_code: ErrorCodes | None = None

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        """Decode a block into ``fields``. See :meth:`hpack.Decoder.decode`."""
        try:
            _check_size_updates(data)
            self.fields = list(super().decode(data, raw))
        except OversizedHeaderListError:
            self.error_code = ErrorCodes.ENHANCE_YOUR_CALM
            raise
        except HPACKError:
            # h2 would say PROTOCOL_ERROR; RFC 9113 §4.3 asks for this.
            self.error_code = ErrorCodes.COMPRESSION_ERROR
            raise
        return []


class _BoundedEncoder(Encoder):
    """Obeys the client's table size only where that is smaller than ours: the table's memory is ours, and a search
    through it is linear. ``SETTINGS_HEADER_TABLE_SIZE`` may be four GiB."""

    @property
    def header_table_size(self) -> int:
        """The dynamic table's size in bytes."""
        return self.header_table.maxsize

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        self.header_table.maxsize = min(value, HEADER_TABLE_BYTES)
        if self.header_table.resized:
            changes = [*self.table_size_changes, self.header_table.maxsize]
            # hpack would announce each value in between as well: without end where there is no answer to send.
            self.table_size_changes = [min(changes), changes[-1]]


class Http2Core:
    """One h2 connection, as a server. ``fields`` are those of the header block that was fed last."""

    def __init__(self, bounds: Http2Bounds, max_head_bytes: int) -> None:
        # All checks of fields are off, of both directions: h2 sees none, and ours are checked before they are sent.
        config = H2Configuration(
            client_side=False,
            header_encoding=None,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = _Connection(config)
        self._decoder = _FieldDecoder(max_head_bytes + DECODED_MARGIN_BYTES)
        self.h2.decoder = self._decoder
        self.h2.encoder = _BoundedEncoder()
        self.h2.local_settings = _build_settings(bounds, max_head_bytes, bounds.max_streams)
        self.h2.initiate_connection()
        # One stream too many is refused with REFUSED_STREAM, by us; h2 would end the connection.
        self.h2.local_settings = _build_settings(bounds, max_head_bytes, 2**31 - 1)
        self.h2.increment_flow_control_window(bounds.connection_window_bytes - 65_535)
        self.h2.receive_data(HTTP2_PREFACE)

    @property
    def fields(self) -> list[HeaderTuple]:
        """The fields of the last header block."""
        return self._decoder.fields

    def feed(self, frame: bytes) -> list[Event]:
        """Give h2 one frame. Raises :exc:`Http2ConnectionError` where it, or its header block, is at fault."""
        try:
            return self.h2.receive_data(frame)
        except ProtocolError as error:
            self.h2.clear_outbound_data_buffer()  # its own GOAWAY, with a code that is not always the right one
            code = self._decoder.error_code or error.error_code
            # The text of h2's errors may repeat what the client sent: it stays out of logs and answers.
            raise Http2ConnectionError(code, type(error).__name__) from None

    def take_output(self) -> bytes:
        """Return what h2 has to send."""
        return self.h2.data_to_send()


def _build_settings(bounds: Http2Bounds, max_head_bytes: int, max_streams: int) -> Settings:
    return Settings(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: max_streams,
            SettingCodes.INITIAL_WINDOW_SIZE: bounds.stream_window_bytes,
            SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            SettingCodes.MAX_HEADER_LIST_SIZE: max_head_bytes,
            SettingCodes.HEADER_TABLE_SIZE: HEADER_TABLE_BYTES,
        },
    )


def _check_size_updates(block: bytes) -> None:
    """Refuse a block with more than two updates of the table's size at its beginning (RFC 7541 §4.2).

    hpack takes any number, and a block of nothing else costs it 60 ms.
    """
    count = index = 0
    while index < len(block) and block[index] & 0xE0 == 0x20:
        count += 1
        if count > _MAX_SIZE_UPDATES:
            raise HPACKDecodingError("too many updates of the table's size")
        if block[index] & 0x1F == 0x1F:  # the number goes on, up to a byte without its highest bit (RFC 7541 §5.1)
            index += 1
            while index < len(block) and block[index] & 0x80:
                index += 1
        index += 1
