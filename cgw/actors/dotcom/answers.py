"""The answers of Sourcegraph.com's GraphQL API, as far as cgw reads them (the reference's §3).

The classes mirror the API's objects, so that cattrs can structure them; fields that are not here are ignored.
"""

from __future__ import annotations

from attrs import field, frozen

from cgw.actors.structuring import BigInt


@frozen
class DotcomRateLimit:
    """A limit of ``limit`` per ``interval_seconds``; ``allowed_models`` are ``provider/model`` names or ``*``."""

    allowed_models: tuple[str, ...]
    limit: BigInt
    interval_seconds: int


@frozen
class DotcomAccess:
    """Access to the gateway: may it be used, and the limit of each feature; ``None`` where there is none."""

    enabled: bool
    chat_completions_rate_limit: DotcomRateLimit | None = None
    code_completions_rate_limit: DotcomRateLimit | None = None
    embeddings_rate_limit: DotcomRateLimit | None = None


@frozen
class DotcomUser:
    """The answer of ``CheckDotcomUserAccessToken``. ``id`` is a relay id, ``base64("User:<number>")``."""

    id: str
    username: str
    cody_gateway_access: DotcomAccess


@frozen
class DotcomAccount:
    """The account of a subscription."""

    username: str


@frozen
class DotcomLicenseInfo:
    """A licence, as it describes itself."""

    tags: tuple[str, ...] | None = None


@frozen
class DotcomLicense:
    """A licence; without ``info`` it has no tags."""

    info: DotcomLicenseInfo | None = None


@frozen
class DotcomSubscription:
    """A product subscription. ``sourcegraph_access_tokens`` (``slk_…``) are only in listings."""

    uuid: str
    is_archived: bool
    cody_gateway_access: DotcomAccess
    account: DotcomAccount | None = None
    active_license: DotcomLicense | None = None
    sourcegraph_access_tokens: tuple[str, ...] = field(default=(), repr=False)

    @property
    def tags(self) -> tuple[str, ...] | None:
        """The tags of the active licence; ``None`` where no licence is active."""
        if self.active_license is None:
            return None
        info = self.active_license.info
        return (info.tags if info is not None else None) or ()


@frozen
class PageInfo:
    """The beginning of the next page."""

    has_next_page: bool
    end_cursor: str | None = None


@frozen
class SnippetAttribution:
    """Repositories that contain a snippet: the names of some, and how many there are (``limit_hit``: at least)."""

    repository_names: tuple[str, ...]
    total_count: int
    limit_hit: bool
