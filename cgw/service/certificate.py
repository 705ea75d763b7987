"""The end of validity of the public port's certificate. The standard library tells it only in a handshake."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

SOON_DAYS = 14
"""Less than that is worth a warning: tools that renew certificates do so 30 days before the end."""

_EXPIRED, _NOT_YET_VALID = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID


def read_days_left(server_context: ssl.SSLContext, cert_file: Path) -> float | None:
    """Return the days until the certificate of ``server_context`` ends, which is the first one in ``cert_file``.

    Below 0 while it is not valid: it has ended, or not begun. ``None`` if that cannot be found out. Blocks to read the
    file, and for a handshake in memory.
    """
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    # Trusts the certificate itself, whoever issued it.
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client_context.load_verify_locations(cert_file)
        server = server_context.wrap_bio(to_server, to_client, server_side=True)
        client = client_context.wrap_bio(to_client, to_server)
        for end in (client, server) * 3:  # a handshake has fewer flights
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
        certificate = client.getpeercert()
    except ssl.SSLCertVerificationError as error:
        return -1.0 if error.verify_code in (_EXPIRED, _NOT_YET_VALID) else None
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        return None
    end_time = (certificate or {}).get("notAfter")
    return (ssl.cert_time_to_seconds(end_time) - time.time()) / 86_400 if isinstance(end_time, str) else None
