"""Properties of Redis's commands: the first key of each, and the ones that can't run on a shared link."""

from __future__ import annotations

from typing import Any


def _name(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Commands that change the state of the connection, block it, or have more or less than one reply: on a shared link
# they would affect other callers' commands.
NOT_ON_SHARED_LINKS = _name(
    """
    ASKING AUTH BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN DISCARD EXEC HELLO MONITOR MULTI
    PSUBSCRIBE PSYNC PUNSUBSCRIBE QUIT READONLY READWRITE RESET SELECT SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE SYNC
    UNSUBSCRIBE UNWATCH WAIT WAITAOF WATCH
    """
)

_WITHOUT_KEY = _name(
    """
    ACL BGREWRITEAOF BGSAVE CLIENT CLUSTER COMMAND CONFIG DBSIZE ECHO FAILOVER FLUSHALL FLUSHDB FUNCTION INFO
    KEYS LASTSAVE LATENCY LOLWUT MODULE PING PUBLISH PUBSUB RANDOMKEY REPLICAOF ROLE SAVE SCAN SCRIPT SHUTDOWN
    SLAVEOF SLOWLOG SWAPDB TIME
    """
)
_KEY_AFTER_SUBCOMMAND = _name("BITOP DEBUG MEMORY OBJECT XGROUP XINFO")
_KEY_AFTER_COUNT = _name("LMPOP SINTERCARD ZDIFF ZINTER ZINTERCARD ZMPOP ZUNION")
_KEY_AFTER_NAME_AND_COUNT = _name("EVAL EVALSHA EVALSHA_RO EVAL_RO FCALL FCALL_RO")


def find_first_key(command: tuple[Any, ...]) -> Any:
    """Return the first key of a command given as words (name, arguments), or ``None`` if it has none.

    Follows the commands' documentation (https://redis.io/commands); of a command that is not listed here, the first
    argument is taken for the key.
    """
    name = str(command[0]).upper()
    if name in _WITHOUT_KEY:
        return None
    at = 1
    if name in _KEY_AFTER_SUBCOMMAND or name in _KEY_AFTER_COUNT:
        at = 2
    elif name in _KEY_AFTER_NAME_AND_COUNT:
        at = 3 if len(command) > 2 and int(command[2]) > 0 else len(command)
    elif name in {"XREAD", "XREADGROUP"}:
        words = [str(word).upper() for word in command]
        at = words.index("STREAMS") + 1 if "STREAMS" in words else len(command)
    elif name == "MIGRATE":
        at = 3
    return command[at] if len(command) > at else None
