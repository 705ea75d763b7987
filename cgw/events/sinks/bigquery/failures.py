"""The meaning of failed calls of Google's client, in an operator's words.

Every failure of a call is a reason to send the batch again later: what BigQuery will not take of an event it says in
its answer to a call that succeeded. Texts are cut, and those of failed logins are not repeated, so that no credential
gets into a log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cgw.errors import explain_os_error
from cgw.events.sinks.bigquery.settings import BigQuerySettings
from cgw.events.sinks.bigquery.table import CREATE_COMMAND
from cgw.events.sinks.sink import SinkUnavailable
from cgw.wire.retry_after import parse_retry_after

MAX_TEXT = 300
MAX_RETRY_AFTER_SECONDS = 300.0

QUOTA_RETRY_SECONDS = 10.0
"""The pause after a refusal for a quota, where BigQuery names none: quotas of streaming are per second or minute."""

_LATER = "events are sent again later"
_QUOTA_REASONS = {"rateLimitExceeded", "quotaExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED"}


class RequestRefused(SinkUnavailable):
    """BigQuery refuses a request as a whole, for what is in it: statuses 400 and 413."""


def shorten(text: object) -> str:
    """Return ``text`` as one line of at most 300 characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"


@contextmanager
def explain_failures(settings: BigQuerySettings) -> Iterator[None]:
    """Turn every failure of Google's client in the block into :exc:`~cgw.events.sinks.sink.SinkUnavailable`."""
    # Imported by the client already; here and not above, so that importing this module costs nothing.
    import requests
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except GoogleAPICallError as error:
        raise _explain_answer(error, settings) from None
    except GoogleAuthError as error:
        raise SinkUnavailable(_explain_login(error, settings)) from None
    except requests.exceptions.Timeout:
        raise SinkUnavailable(f"{_name_server(settings)} did not answer in time: {_LATER}") from None
    # Not a requests.Timeout, but raised by the same library for an answer that is no JSON: before its base class.
    except requests.exceptions.JSONDecodeError as error:
        raise SinkUnavailable(_describe_stranger(settings, error)) from None
    except (requests.exceptions.RequestException, OSError) as error:
        wrong = f"no connection to {_name_server(settings)} ({_explain_connecting(error)})"
        raise SinkUnavailable(f"{wrong}: check DNS, proxy and firewall") from None
    # Google's client takes for granted that an answer of status 200 is JSON of the right shape.
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise SinkUnavailable(_describe_stranger(settings, error)) from None


def _name_server(settings: BigQuerySettings) -> str:
    if settings.emulator_url is None:
        return "BigQuery"
    return f"the BigQuery emulator at {settings.emulator_url}"


def _describe_stranger(settings: BigQuerySettings, error: Exception) -> str:
    return (
        f"what answers is not {_name_server(settings)}, its answer cannot be read ({type(error).__name__}): "
        "look for a proxy in between"
    )


def _explain_connecting(error: BaseException) -> str:
    # requests wraps urllib3's errors, and says in its own text which objects took part.
    inner = error.args[0] if error.args else None
    inner = getattr(inner, "reason", inner)
    return shorten(explain_os_error(inner if isinstance(inner, BaseException) else error))


def _explain_login(error: Any, settings: BigQuerySettings) -> str:
    from google.auth.exceptions import DefaultCredentialsError, TransportError

    if settings.emulator_url is not None:
        return f"{_name_server(settings)} wants a login: switch that off, cgw sends none to an emulator"
    if isinstance(error, DefaultCredentialsError):
        return (
            "there are no Google credentials: attach a service account to this machine, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to the path of a key file"
        )
    if isinstance(error, TransportError):
        return "no access token, because Google's server for them cannot be reached: check DNS, proxy and firewall"
    # Its text may quote the server's answer. The code at its beginning (RFC 6749 §5.2) says enough.
    code = re.match(r"[a-z_]{3,40}(?=:)", str(error.args[0]) if error.args else "")
    return (
        f"Google refuses the credentials{f' ({code[0]})' if code else ''}: check that the service account and its key "
        "exist and are enabled, and that the clock is right"
    )


def _explain_answer(error: Any, settings: BigQuerySettings) -> SinkUnavailable:
    """Explain an HTTP status other than 2xx. ``error`` is a ``GoogleAPICallError``."""
    status, details = int(error.code or 0), [detail for detail in error.errors if isinstance(detail, dict)]
    reasons = {str(detail.get("reason", "")) for detail in details}
    message = next((str(detail["message"]) for detail in details if detail.get("message")), "")
    # The client's own text begins with the method and the URL.
    message = message or re.sub(r"^[A-Z]+ \S+: ", "", str(error.message))
    told = f"{status} {shorten(message)}"
    headers = getattr(error.response, "headers", {})
    name, pause = settings.table_name, parse_retry_after(str(headers.get("retry-after", "")), MAX_RETRY_AFTER_SECONDS)
    if status == 429 or _QUOTA_REASONS & reasons:
        text = f"a quota of BigQuery is used up ({told}): {_LATER}; raise the quota if that goes on"
        return SinkUnavailable(text, retry_after_seconds=pause or QUOTA_RETRY_SECONDS)
    if status == 404:
        first = "create the dataset, then " if "dataset" in message.casefold() else ""
        return SinkUnavailable(f"the table {name} is not there ({told}): {first}run `{CREATE_COMMAND}`")
    if status == 401:
        return SinkUnavailable(f"BigQuery does not accept the credentials ({told}): check the service account")
    if "billingNotEnabled" in reasons or "free tier" in message:
        return SinkUnavailable(
            f"the project {settings.project_id} has no billing ({told}): enable it, streaming needs it"
        )
    if status == 403:
        return SinkUnavailable(
            f"the service account may not write to {name} ({told}): grant it roles/bigquery.dataEditor on the dataset"
        )
    if status >= 500:
        return SinkUnavailable(f"BigQuery has a failure ({told}): {_LATER}", retry_after_seconds=pause)
    kind = RequestRefused if status in (400, 413) else SinkUnavailable
    return kind(f"BigQuery refuses to insert into {name} ({told}): look that up in Google's list of BigQuery errors")
