"""The answers of Sourcegraph.com's GraphQL API, as far as cgw reads them (the reference's §3).

Structured by cattrs: fields that are not here are ignored, one that is missing is named by its path.
"""

from __future__ import annotations

from attrs import frozen


@frozen
class DotcomRateLimit:
    """A limit of ``limit`` per ``interval_seconds``; ``allowed_models`` are ``provider/model`` names or ``*``."""

    allowed_models: tuple[str, ...]
    limit: int
    interval_seconds: int


@frozen
class DotcomAccess:
    """Whether the gateway may be used, and the limit of each feature; ``None`` where there is none."""

    enabled: bool
    chat_completions: DotcomRateLimit | None
    code_completions: DotcomRateLimit | None
    embeddings: DotcomRateLimit | None


@frozen
class DotcomUser:
    """The answer of ``CheckDotcomUserAccessToken``. ``id`` is a relay id, ``base64("User:<number>")``."""

    id: str
    username: str
    access: DotcomAccess


@frozen
class DotcomSubscription:
    """A product subscription. ``tags`` are those of its active licence; ``None`` where no licence is active.

    ``access_tokens`` are those that are listed (``slk_…``); empty in the answer about one token.
    """

    uuid: str
    username: str | None
    is_archived: bool
    access: DotcomAccess
    tags: tuple[str, ...] | None
    access_tokens: tuple[str, ...] = ()

    def __repr__(self) -> str:
        # Without the tokens.
        return f"<DotcomSubscription {self.uuid}>"


@frozen
class SnippetAttribution:
    """Repositories that contain a snippet: the names of some, and how many there are (``limit_hit``: at least)."""

    repository_names: tuple[str, ...]
    total_count: int
    limit_hit: bool
