"""Error bodies without the request's id, which is another one each time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class JsonAnswer(Protocol):
    """A response with a JSON body; httpx's and the raw client's."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields."""
        ...

    def json(self) -> Any:
        """Return the body."""
        ...


def read_error(answer: JsonAnswer) -> Any:
    """Return the error body of ``answer`` without its id, after a check that it is that of the header field."""
    return take_request_id(answer.json(), answer.headers["x-cgw-request-id"])


def take_request_id(body: Any, request_id: str) -> Any:
    """Return an error body without its id, after a check that it is ``request_id``."""
    holder = body if "request_id" in body else body["error"]
    if "details" in holder:  # Google's
        assert holder["details"].pop()["requestId"] == request_id
        if not holder["details"]:
            del holder["details"]
    else:
        assert holder.pop("request_id") == request_id
    return body
