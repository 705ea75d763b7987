"""Anthropic's list of models (https://platform.claude.com/docs/en/api/models-list), in pages by the ids of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen

from cgw.errors import Refusal

DEFAULT_LIMIT = 20
MAX_LIMIT = 1000

# What the API says where the release date is unknown.
_EPOCH = "1970-01-01T00:00:00Z"


@frozen
class AnthropicModelList:
    """See :class:`~cgw.providers.model_list.ModelList`."""

    paths: ClassVar[tuple[str, ...]] = ("/v1/models",)

    def build_list(self, names: Sequence[str], provider: str, query: Mapping[str, str]) -> dict[str, Any]:
        """See :meth:`ModelList.build_list`: ``limit``, and ``after_id`` or ``before_id``."""
        limit = _read_limit(query.get("limit"))
        start, end = 0, len(names)
        if "after_id" in query:
            start = _find(names, query["after_id"], "after_id") + 1
        if "before_id" in query:
            end = _find(names, query["before_id"], "before_id")
        if "before_id" in query and "after_id" not in query:
            page, has_more = names[max(start, end - limit) : end], end - limit > start
        else:
            page, has_more = names[start : min(end, start + limit)], start + limit < end
        return {
            "data": [self.build_model(name, provider) for name in page],
            "has_more": has_more,
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
        }

    def build_model(self, name: str, provider: str) -> dict[str, Any]:
        """See :meth:`ModelList.build_model`. The name for people is not known here, so it is the id."""
        return {"type": "model", "id": name, "display_name": name, "created_at": _EPOCH, "lifecycle": "active"}


def _read_limit(value: str | None) -> int:
    if value is None:
        return DEFAULT_LIMIT
    if not value.isascii() or not value.isdecimal() or not 1 <= int(value[:6]) <= MAX_LIMIT:
        raise Refusal(400, f"limit: must be a number from 1 to {MAX_LIMIT}", param="limit")
    return int(value)


def _find(names: Sequence[str], name: str, parameter: str) -> int:
    if name not in names:
        raise Refusal(400, f"{parameter}: there is no such model", param=parameter)
    return names.index(name)
