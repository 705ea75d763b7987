"""Reading limits as Sourcegraph.com tells them."""

from __future__ import annotations

from cgw.actors.dotcom.answers import DotcomAccess
from cgw.actors.fetched.backend import Report
from cgw.actors.fetched.fetched_actor import FetchedLimit, check_limit
from cgw.actors.fetched.limits import collect_limits
from cgw.model import Feature


def read_limits(access: DotcomAccess, actor_name: str, report: Report) -> dict[str, FetchedLimit]:
    """Return the limits by feature; one that is wrong is left out, and reported under ``actor_name``."""
    told = {
        Feature.CODE_COMPLETIONS: access.code_completions_rate_limit,
        Feature.CHAT_COMPLETIONS: access.chat_completions_rate_limit,
        Feature.EMBEDDINGS: access.embeddings_rate_limit,
    }
    return collect_limits(
        told,
        lambda limit: check_limit(limit.limit, limit.interval_seconds, limit.allowed_models),
        actor_name,
        report,
    )
