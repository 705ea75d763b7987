"""The steps that the routes for OpenAI's SDKs share: the body passes as it came, errors have OpenAI's shape."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from attrs import field, frozen

from cgw.errors import Refusal
from cgw.model import Feature
from cgw.providers.dialect import Caller, ErrorStyle
from cgw.providers.json_body import ClientBody
from cgw.providers.openai.chat import PROVIDER
from cgw.providers.openai.errors import OpenAIErrors
from cgw.providers.request_body import BodyReader
from cgw.providers.route import Route

T = TypeVar("T")


@frozen
class OpenAISdkRoute(Route):
    """The base of these dialects. ``takes_code``: the route is for code completions as well."""

    provider: str = field(default=PROVIDER, kw_only=True)
    path: str = field(kw_only=True)
    takes_code: bool = field(default=False, kw_only=True)

    errors: ClassVar[ErrorStyle] = OpenAIErrors()
    default_feature: ClassVar[Feature | None] = Feature.CHAT_COMPLETIONS
    # From the reference (§6.1): above the 3 s up to which Sourcegraph's clients retry by themselves, so they do not.
    retry_after_seconds: ClassVar[int] = 30

    def read(self, reader: BodyReader[T], body: ClientBody, caller: Caller) -> tuple[T, dict[str, Any]]:
        """Return the checked body and the decoded object. Raises :exc:`~cgw.errors.Refusal` (400)."""
        self._check_feature(caller)
        parsed, raw = reader.read(body)
        self.check(raw)
        return parsed, raw

    def read_counted(self, reader: BodyReader[T], body: ClientBody, caller: Caller) -> tuple[T, dict[str, Any], int]:
        """Return what :meth:`read` does, and the characters of the prompt."""
        self._check_feature(caller)
        parsed, raw, characters = reader.read_counted(body)
        self.check(raw)
        return parsed, raw, characters

    def _check_feature(self, caller: Caller) -> None:
        if caller.feature is Feature.CODE_COMPLETIONS and not self.takes_code:
            raise Refusal(400, f'feature "{caller.feature}" is currently not supported for OpenAI')

    def check(self, raw: dict[str, Any]) -> None:
        """Raise :exc:`~cgw.errors.Refusal` (400) for what a provider does not accept, besides the fields' types."""
