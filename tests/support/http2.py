"""An HTTP/2 client that a test moves step by step."""

from __future__ import annotations

import h2.config
import h2.connection
import trio

from tests.support.requests import HEADERS


class Http2Client:
    """One HTTP/2 connection with prior knowledge; a test may cut it or leave a stream at any step."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.connection.initiate_connection()

    async def post(self, path: str, body: bytes) -> int:
        """Send a request on a new stream; return the stream's id."""
        stream_id = self.connection.get_next_available_stream_id()
        head = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "x"), *HEADERS.items()]
        self.connection.send_headers(stream_id, head)
        self.connection.send_data(stream_id, body, end_stream=True)
        await self.flush()
        return stream_id

    async def flush(self) -> None:
        """Send the data that h2 has queued."""
        await self.stream.send_all(self.connection.data_to_send())
