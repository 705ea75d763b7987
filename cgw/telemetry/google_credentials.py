"""Google's application default credentials, for posting from a thread. Needs the extra ``gcp``."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from cgw.telemetry.export_thread import ExportFailed
from cgw.telemetry.otlp_http import Authorize


def has_google_auth() -> bool:
    """Return whether Google's library for credentials is installed."""
    return importlib.util.find_spec("google") is not None and importlib.util.find_spec("google.auth") is not None


def build_google_authorization(scope: str) -> Authorize:
    """Return what makes the header field ``Authorization``. It raises ExportFailed, and blocks for its timeout.

    Credentials are looked for at its first call: that may ask the metadata server, for seconds.
    """
    credentials: Any = None

    def authorize(timeout_seconds: float) -> Mapping[str, str]:
        nonlocal credentials
        import google.auth
        import urllib3
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.urllib3 import Request

        try:
            if credentials is None:
                credentials, _ = google.auth.default(scopes=[scope])
            if not credentials.valid:
                request: Any = Request(urllib3.PoolManager())  # type: ignore[no-untyped-call]
                # Its own timeout is 120 s.
                credentials.refresh(lambda *args, **options: request(*args, **{**options, "timeout": timeout_seconds}))
        except GoogleAuthError as error:
            # Not its text, which may quote what the token server answered.
            raise ExportFailed(f"Google's credentials cannot be used ({type(error).__name__})") from None
        return {"authorization": f"Bearer {credentials.token}"}

    return authorize
