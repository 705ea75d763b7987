"""h2, configured for the engine: stream errors do not end the connection, and its memory is bounded.

h2 treats every :exc:`~h2.exceptions.ProtocolError` as the end of the connection, also for faults that RFC 9113 §8.1.1
makes a stream error. So it never sees header fields: the decoder keeps them here, for our own checks. And
:mod:`cgw.wire.http2_protocol` handles the frames on which h2 would raise without need.
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
"""Size of HPACK's dynamic tables in both directions: the protocol's initial value."""

CLOSED_STREAMS = 1000
"""Number of closed streams that are remembered, to tell their late frames from violations."""

DECODED_MARGIN_BYTES = 16 * 1024
"""A header list above the bound by at most this gets a 431. A larger one ends the connection: decoding stops, and
HPACK's state is lost. That bounds the memory of a block of references to the dynamic table ("HPACK bomb").
"""

_MAX_SIZE_UPDATES = 2  # RFC 7541 §4.2: the smallest value and the last one


class _Connection(H2Connection):
    MAX_CLOSED_STREAMS = CLOSED_STREAMS  # h2's own bound, 65,536, would cost up to 8 MiB per connection


class _FieldDecoder(Decoder):
    """Keeps the decoded fields in ``fields`` and gives h2 none.

    Given fields, h2 ends the connection for a bad ``content-length`` or for ``:status: 100``, even with
    ``validate_inbound_headers=False``.
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
            # h2 would use PROTOCOL_ERROR; RFC 9113 §4.3 requires this code.
            self.error_code = ErrorCodes.COMPRESSION_ERROR
            raise
        return []


class _BoundedEncoder(Encoder):
    """Caps the client's SETTINGS_HEADER_TABLE_SIZE, which may be 4 GiB: the table is in our memory, and hpack searches
    it linearly."""

    @property
    def header_table_size(self) -> int:
        """The dynamic table's size in bytes."""
        return self.header_table.maxsize

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        self.header_table.maxsize = min(value, HEADER_TABLE_BYTES)
        if self.header_table.resized:
            changes = [*self.table_size_changes, self.header_table.maxsize]
            # hpack would keep every value in between, without bound while there is no answer to send.
            self.table_size_changes = [min(changes), changes[-1]]


class Http2Core:
    """One h2 connection, server side."""

    def __init__(self, bounds: Http2Bounds, max_head_bytes: int) -> None:
        # No field checks by h2: it sees no inbound fields, and select_response_fields checks the outbound ones.
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
        # The announced bound is enforced by Http2Protocol with REFUSED_STREAM; h2 would end the connection.
        self.h2.local_settings = _build_settings(bounds, max_head_bytes, 2**31 - 1)
        # The connection's window has no setting; it starts at 65,535 and grows by WINDOW_UPDATE (RFC 9113 §6.9.2).
        self.h2.increment_flow_control_window(bounds.connection_window_bytes - 65_535)
        # Http2Protocol checks the client's preface itself, byte by byte.
        self.h2.receive_data(HTTP2_PREFACE)

    @property
    def fields(self) -> list[HeaderTuple]:
        """The fields of the header block that was fed last."""
        return self._decoder.fields

    def feed(self, frame: bytes) -> list[Event]:
        """Pass one frame to h2. Raises :exc:`Http2ConnectionError` if it must end the connection."""
        try:
            return self.h2.receive_data(frame)
        except ProtocolError as error:
            self.h2.clear_outbound_data_buffer()  # h2's own GOAWAY, whose code is not always right
            code = self._decoder.error_code or error.error_code
            # The texts of h2's errors may contain header fields; they must not reach a log or the client.
            raise Http2ConnectionError(code, type(error).__name__) from None

    def take_output(self) -> bytes:
        """Return the bytes that h2 has to send."""
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
