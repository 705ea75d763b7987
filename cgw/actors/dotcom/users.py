"""The users of Sourcegraph.com (the reference's §2.5)."""

from __future__ import annotations

import base64
import re
import time

from cgw.actors.dotcom.client import DotcomClient
from cgw.actors.dotcom.limits import read_limits
from cgw.actors.fetched.backend import Report
from cgw.actors.fetched.fetched_actor import FetchedActor
from cgw.actors.source import SourceUnavailable
from cgw.actors.tokens import clean_name

_USER_ID = re.compile(rb"User:([0-9]{1,18})")


class DotcomUsers:
    """Asks Sourcegraph.com for users. A :class:`~cgw.actors.fetched.backend.Backend`."""

    def __init__(self, client: DotcomClient) -> None:
        self._client = client

    async def fetch(self, token: str, report: Report) -> FetchedActor:
        """See :class:`~cgw.actors.fetched.backend.Backend`."""
        user = await self._client.check_dotcom_user_access_token(token)
        number = parse_user_id(user.id)
        if number is None:
            # Not an actor without id, as in the reference: a wrong answer says nothing of the user.
            raise SourceUnavailable(
                f"the id of Sourcegraph.com's user {clean_name(user.username)!r} is no relay id of a user",
                is_down=False,
            )
        name = clean_name(user.username)
        return FetchedActor(
            id=number,
            name=name,
            access_enabled=user.cody_gateway_access.enabled,
            fetched_at_ms=round(time.time() * 1000),
            limits=read_limits(user.cody_gateway_access, f"user {number} ({name})", report),
        )


def parse_user_id(relay_id: str) -> str | None:
    """Return the number in a relay id, ``base64("User:<number>")``, in decimal; ``None`` for anything else."""
    try:
        match = _USER_ID.fullmatch(base64.b64decode(relay_id, validate=True))
    except ValueError:
        return None
    return str(int(match[1])) if match else None
