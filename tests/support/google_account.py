"""A service account of Google's whose tokens come from a server of the test's."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa


def write_account(path: Path, token_url: str) -> None:
    """Write the key file of such an account, as ``GOOGLE_APPLICATION_CREDENTIALS`` names it."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    account = {
        "type": "service_account",
        "client_email": "cgw@example.com",
        "token_uri": token_url,
        "private_key": pem.decode(),
    }
    path.write_text(json.dumps(account))
