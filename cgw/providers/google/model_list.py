"""Google's list of Gemini models (https://ai.google.dev/api/models), in pages by the number of the first model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen

from cgw.errors import Refusal

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

_METHODS = ["generateContent", "countTokens"]
_EMBEDDING_METHODS = ["embedContent"]


@frozen
class GoogleModelList:
    """See :class:`~cgw.providers.model_list.ModelList`."""

    paths: ClassVar[tuple[str, ...]] = ("/v1beta/models", "/v1/models")

    def build_list(self, names: Sequence[str], provider: str, query: Mapping[str, str]) -> dict[str, Any]:
        """See :meth:`ModelList.build_list`: ``pageSize`` and ``pageToken``. Larger pages are cut, as in the API."""
        start = _read_number(query.get("pageToken"), "pageToken") or 0
        size = min(_read_number(query.get("pageSize"), "pageSize") or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        answer: dict[str, Any] = {"models": [self.build_model(name, provider) for name in names[start : start + size]]}
        if start + size < len(names):
            answer["nextPageToken"] = str(start + size)
        return answer

    def build_model(self, name: str, provider: str) -> dict[str, Any]:
        """See :meth:`ModelList.build_model`. Limits of tokens are not known here."""
        methods = _EMBEDDING_METHODS if "embedding" in name else _METHODS
        return {
            "name": f"models/{name}",
            "version": "",
            "displayName": name,
            "supportedGenerationMethods": methods,
        }


def _read_number(value: str | None, parameter: str) -> int | None:
    if not value:
        return None
    if not value.isascii() or not value.isdecimal() or len(value) > 6:
        raise Refusal(400, f"{parameter}: must be a number", param=parameter)
    return int(value)
