"""TLS on the public port: the certificate, and reading it again while the service runs."""

from __future__ import annotations

import ssl
from pathlib import Path

import trio

from cgw.errors import ConfigError, explain_os_error


class ServerTls:
    """The TLS context of the public port. New connections use the files as they were read last."""

    def __init__(self, cert_file: Path, key_file: Path, *, has_http2: bool) -> None:
        """Read the files. Blocks. Raises :exc:`~cgw.errors.ConfigError` for files that cannot be used."""
        self._cert_file = cert_file
        self._key_file = key_file
        self._protocols = ["h2", "http/1.1"] if has_http2 else ["http/1.1"]
        self._context = self._load()

    def get_context(self) -> ssl.SSLContext:
        """Return the context for a new connection."""
        return self._context

    async def reload(self) -> None:
        """Read the files again. Raises :exc:`~cgw.errors.ConfigError`, and keeps the old certificate, on failure."""
        self._context = await trio.to_thread.run_sync(self._load, abandon_on_cancel=True)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(self._protocols)
        try:
            # Both files are read here, so that a certificate is never paired with the key of another one.
            # A password is given, as OpenSSL would ask for one on the terminal, and wait.
            context.load_cert_chain(self._cert_file, self._key_file, password="")
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(
                [
                    f"CODY_GATEWAY_TLS_CERT_FILE, CODY_GATEWAY_TLS_KEY_FILE: cannot use {self._cert_file} and "
                    f"{self._key_file}: {explain_os_error(error)}"
                ]
            ) from None
        return context
