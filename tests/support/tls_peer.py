"""The server's end of a TLS connection, sans I/O, so that a test can cut records or leave them out."""

from __future__ import annotations

import contextlib
import ssl

import trio
import trustme

HOST = "127.0.0.1"


class TlsAuthority:
    """A certificate authority, a certificate of this machine, and contexts for both ends."""

    def __init__(self) -> None:
        self.ca = trustme.CA()
        self.certificate = self.ca.issue_cert(HOST)

    def build_client_context(self) -> ssl.SSLContext:
        """Build a context that trusts the authority."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context

    def build_server_context(self, version: ssl.TLSVersion) -> ssl.SSLContext:
        """Build a context for ``version`` only."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.certificate.configure_cert(context)
        context.minimum_version = context.maximum_version = version
        return context


class TlsPeer:
    """Encrypts and decrypts; the caller moves the ciphertext."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def do_handshake(self, stream: trio.SocketStream) -> None:
        """Agree on keys, and send what follows in TLS 1.3: session tickets."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await stream.send_all(self._outgoing.read())
                data = await stream.receive_some(65536)
                if not data:
                    raise trio.BrokenResourceError("the client left the handshake") from None
                self._incoming.write(bytes(data))
            else:
                await stream.send_all(self._outgoing.read())
                return

    def feed(self, ciphertext: bytes) -> bytes:
        """Return the data that ``ciphertext`` completes."""
        self._incoming.write(ciphertext)
        plain = b""
        while True:
            try:
                more = self._tls.read(65536)
            except ssl.SSLWantReadError:
                return plain
            if not more:
                return plain
            plain += more

    def encrypt(self, data: bytes) -> bytes:
        """Encrypt ``data`` as records of at most 16 KiB."""
        if data:
            self._tls.write(data)
        return self._outgoing.read()

    def build_close_notify(self) -> bytes:
        """Build the alert that announces the end of the data."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self._outgoing.read()
