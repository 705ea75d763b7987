"""OpenAI's list of models (https://platform.openai.com/docs/api-reference/models): all on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen


@frozen
class OpenAIModelList:
    """See :class:`~cgw.providers.model_list.ModelList`."""

    paths: ClassVar[tuple[str, ...]] = ("/v1/models",)

    def build_list(self, names: Sequence[str], provider: str, query: Mapping[str, str]) -> dict[str, Any]:
        """See :meth:`ModelList.build_list`. The API has no pages, and ignores a query."""
        return {"object": "list", "data": [self.build_model(name, provider) for name in names]}

    def build_model(self, name: str, provider: str) -> dict[str, Any]:
        """See :meth:`ModelList.build_model`. When a model was made is not known here: 0."""
        return {"id": name, "object": "model", "created": 0, "owned_by": provider}
