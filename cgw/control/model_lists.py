"""Lists of models below ``/<provider>/``, in each API's form: answered by cgw, from what the actor may use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, unquote

import msgspec
from attrs import frozen

from cgw.control.responses import JSON, ControlResponse
from cgw.errors import Headers, Refusal
from cgw.model import Actor
from cgw.providers.dialect import Dialect
from cgw.providers.model_list import ModelList, list_models, may_use
from cgw.providers.provider import Provider
from cgw.wire.messages import RequestHead

MAX_QUERY_FIELDS = 20


@frozen
class ModelRoute:
    """A route that was asked for: the list of a provider, or the ``model`` of it."""

    provider: str
    form: ModelList
    dialects: tuple[Dialect, ...]
    model: str | None = None


class ModelLists:
    """The lists of the providers that have a route in ``dialects``."""

    def __init__(self, providers: Iterable[Provider], dialects: Iterable[Dialect]) -> None:
        dialects = tuple(dialects)
        self._routes: dict[str, ModelRoute] = {}
        for provider in providers:
            own = tuple(dialect for dialect in dialects if dialect.provider == provider.name)
            if own and provider.model_list is not None:
                route = ModelRoute(provider.name, provider.model_list, own)
                self._routes |= {f"/{provider.name}{path}": route for path in provider.model_list.paths}

    def find(self, path: str) -> ModelRoute | None:
        """Return the route at ``path``, ``None`` if there is none. A model's name may have slashes, encoded or not."""
        if path in self._routes:
            return self._routes[path]
        for prefix, route in self._routes.items():
            if path.startswith(f"{prefix}/") and len(path) > len(prefix) + 1:
                return ModelRoute(route.provider, route.form, route.dialects, unquote(path[len(prefix) + 1 :]))
        return None


def answer_models(route: ModelRoute, actor: Actor, head: RequestHead, headers: Headers) -> ControlResponse:
    """Return the list, or the model, with ``headers``. Raises :exc:`~cgw.errors.Refusal` 404 for another model.

    A model that only a pattern admits is in no list, but is there if it is asked for.
    """
    provider, name = route.provider, route.model
    if name is None:
        names = list_models(actor, route.dialects, provider)
        answer = route.form.build_list(names, provider, _read_query(head))
    elif may_use(actor, route.dialects, provider, name):
        answer = route.form.build_model(name, provider)
    else:
        text = f"The model '{name[:100]}' does not exist or you do not have access to it."
        raise Refusal(404, text, param="model", code="model_not_found", headers=headers)
    return ControlResponse(200, (*JSON, *headers), msgspec.json.encode(answer))


def _read_query(head: RequestHead) -> Mapping[str, str]:
    query = head.target.partition(b"?")[2].decode("latin-1")
    try:
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS))
    except ValueError:
        raise Refusal(400, f"the query has more than {MAX_QUERY_FIELDS} fields") from None
