"""The owners of what providers store: an actor's responses, which later requests may refer to by id.

All actors share the gateway's account at the provider, where an id is all that it takes to read a response or to go on
from it. So the ids of what an exchange stored are kept in Redis under its actor, and a request that names any other id
is answered as if there were no such object. What cannot be proven to be the actor's is refused: what was made before,
elsewhere or longer ago than :data:`TTL_SECONDS`, and while Redis is away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

from redis.exceptions import ResponseError

from cgw.errors import Refusal, StoreUnavailable
from cgw.limits.claims import build_key_prefix
from cgw.model import Actor
from cgw.redis.lua import LuaScript, ScriptCall
from cgw.redis.store import Store

TTL_SECONDS = 30 * 24 * 3600
"""The time for which an id is kept: OpenAI stores responses for 30 days."""

MAX_IDS = 50_000
"""The most ids that are kept for an actor and a provider, some 5 MB; beyond that the oldest are forgotten."""

MAX_IDS_AT_ONCE = 1000
"""The most ids of one response: they are the provider's to choose."""

# Safe to repeat. The time is the server's own, so that replicas with other clocks forget nothing too early.
_KEEP = """\
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for i = 3, #ARGV do
    redis.call('ZADD', KEYS[1], now, ARGV[i])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[1]))
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[2]))
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
"""


class StoredObjects:
    """The ids of stored objects in ``store``, by actor and provider."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keep = LuaScript.from_text(_KEEP)
        # A script that the server does not know yet is sent twice, and would come after what is asked next.
        store.preload([self._keep])

    def keep_later(self, actor: Actor, provider: str, ids: Collection[str]) -> None:
        """Note that ``ids`` are the actor's. Never blocks: while Redis is away, it is done when it is back."""
        members = _digest(sorted(ids)[:MAX_IDS_AT_ONCE])
        if members:
            key = _build_key(actor, provider)
            self._store.send_later(ScriptCall(self._keep, (key,), (TTL_SECONDS, MAX_IDS, *members)))

    async def find_foreign(self, actor: Actor, provider: str, ids: Sequence[str]) -> str | None:
        """Return the first of ``ids`` that is not known to be the actor's; ``None`` if all are.

        Raises :exc:`~cgw.errors.Refusal` (503) while Redis does not answer. Cancel-safe: it only reads.
        """
        try:
            scores = await self._store.execute_command("ZMSCORE", _build_key(actor, provider), *_digest(ids))
        except (StoreUnavailable, ResponseError):
            text = "it cannot be checked right now whose stored responses these are, please retry"
            raise Refusal(503, text, headers=[(b"retry-after", b"1")]) from None
        return next((id_ for id_, score in zip(ids, scores, strict=True) if score is None), None)

    async def check_references(self, actor: Actor, provider: str, ids: Sequence[str]) -> None:
        """Raise :exc:`~cgw.errors.Refusal`, in the words of OpenAI's API, if one of ``ids`` is not the actor's."""
        foreign = await self.find_foreign(actor, provider, ids)
        if foreign is None:
            return
        shown = foreign[:100]
        if foreign.startswith("resp_"):
            text, param = f"Previous response with id '{shown}' not found.", "previous_response_id"
            raise Refusal(400, text, param=param, code="previous_response_not_found")
        raise Refusal(404, f"Item with id '{shown}' not found.", param="input", code="item_not_found")


def _build_key(actor: Actor, provider: str) -> str:
    # The hash tag is the actor's, as for its limits.
    return f"{build_key_prefix(actor.source, actor.id)}stored:{provider}"


def _digest(ids: Iterable[str]) -> list[bytes]:
    """Return what stands for each id in Redis: 16 bytes, however long the id, and of no use to who reads them there."""
    return [hashlib.sha256(id_.encode("utf-8", "replace")).digest()[:16] for id_ in ids]
