"""The actors file: the actors of gateways that run without Sourcegraph.com.

.. code-block:: toml

    [[actor]]
    id = "acme"                        # the pool that limits count on
    name = "Acme Inc."                 # for people; the default is the id
    token_sha256 = ["<64 hex>"]        # SHA-256 of each token that may be presented
    access_enabled = true              # the default; false gives 403
    max_in_flight = 20                 # optional: requests at once, for each feature without its own
    [actor.limits.chat_completions]    # also code_completions, embeddings
    limit = 100
    unit = "requests"                  # the limit counts requests or tokens; the default of embeddings is tokens
    interval = "24h"
    allowed_models = ["*"]             # the default; or provider/model names, as anthropic/claude-*
    concurrent_requests = 50           # optional, with its interval: the short-term rate
    concurrent_requests_interval = "10s"
    max_in_flight = 5                  # optional
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

from attrs import define, field, frozen

from cgw.actors.concurrency import derive_concurrent_requests
from cgw.actors.policies import POLICIES, STATIC
from cgw.actors.tokens import ACTOR_ID, ACTOR_ID_RULE, NAME_RULE, is_valid_name
from cgw.actors.toml_table import TableReader
from cgw.config.kinds import choice
from cgw.durations import parse_duration
from cgw.errors import ConfigError, explain_os_error
from cgw.model import ANY_MODEL, MAX_IN_FLIGHT, Actor, Feature, LimitUnit, RateLimit, rate_limit_problems

_UNIT = choice(*LimitUnit)
# Only the first slash separates: the names of some providers have more (fireworks/accounts/fireworks/models/…).
_MODEL = re.compile(r"[^\s/*]+/\S+")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@frozen
class FileVersion:
    """The metadata that tells two versions of a file apart without reading it."""

    mtime_ns: int
    size: int
    # A file that is replaced, as editors and Kubernetes do it, has another inode even if time and size are the same.
    inode: int


@frozen
class ActorsFile:
    """The file at ``path``, and the settings of the short-term rate. All methods block."""

    path: Path
    percentage: int
    interval_ms: int

    def get_version(self) -> FileVersion:
        """Return the version that exists now. Raises :exc:`~cgw.errors.ConfigError` if there is no file."""
        try:
            return _build_version(os.stat(self.path))
        except OSError as error:
            raise self._explain(error) from None

    def read(self) -> tuple[FileVersion, bytes]:
        """Return the file's version and content. Raises :exc:`~cgw.errors.ConfigError` if it cannot be read."""
        try:
            with self.path.open("rb") as file:
                # The version first: a write during the read then shows as a new version the next time.
                return _build_version(os.fstat(file.fileno())), file.read()
        except OSError as error:
            raise self._explain(error) from None

    def parse(self, content: bytes) -> dict[str, Actor]:
        """Return the actors by the SHA-256 of their tokens, in lower-case hex.

        Raises :exc:`~cgw.errors.ConfigError` with every problem, each beginning with the paths of file and key
        (``actors.toml: actor[0].limits.chat_completions.interval: …``; actors count from 0), or with the line and
        column if it is not valid TOML. No problem repeats a token or a hash.
        """
        try:
            document = tomllib.loads(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ConfigError([f"{self.path}: is not UTF-8 at byte {error.start}"]) from None
        except ValueError as error:  # a TOMLDecodeError, or a number with thousands of digits
            raise ConfigError([f"{self.path}: not valid TOML: {error}"]) from None
        # Problems are collected, not raised: the operator sees all of them at once.
        reading = _Reading(self.percentage, self.interval_ms)
        actors_by_hash = reading.read(TableReader(document, "", reading.problems))
        if reading.problems:
            raise ConfigError([f"{self.path}: {problem}" for problem in reading.problems])
        return actors_by_hash

    def _explain(self, error: OSError) -> ConfigError:
        return ConfigError([f"{self.path}: cannot be read: {explain_os_error(error)}"])


def _build_version(status: os.stat_result) -> FileVersion:
    return FileVersion(status.st_mtime_ns, status.st_size, status.st_ino)


@define
class _Reading:
    """One pass over a file. The paths of ids and hashes are kept to find duplicates."""

    percentage: int
    interval_ms: int
    problems: list[str] = field(factory=list)
    path_by_id: dict[str, str] = field(factory=dict)
    path_by_hash: dict[str, str] = field(factory=dict)

    def read(self, document: TableReader) -> dict[str, Actor]:
        tables = document.take_tables("actor")
        document.finish()
        if tables is None:
            self.problems.append("has no [[actor]]")
        actors_by_hash = {}
        # Go on after a problem, with what could be read: the caller discards the result then.
        for table in tables or ():
            actor, hashes = self._read_actor(table)
            actors_by_hash.update(dict.fromkeys(hashes, actor))
        return actors_by_hash

    def _read_actor(self, table: TableReader) -> tuple[Actor, list[str]]:
        actor_id = self._read_id(table)
        name = table.take("name", str) or ""
        if not is_valid_name(name):
            table.add_problem("name", NAME_RULE)
        hashes = self._read_hashes(table)
        access_enabled = table.take("access_enabled", bool)
        max_in_flight = _read_max_in_flight(table)
        # An actor whose access is off needs no limits.
        limits = self._read_limits(table, max_in_flight, is_required=access_enabled is not False)
        # After everything is read: a key that was not taken by now is unknown.
        table.finish()
        # Built from what could be read: the caller discards it if there are problems.
        actor = Actor(
            id=actor_id,
            name=name,
            source=STATIC,
            access_enabled=access_enabled is not False,
            rate_limits=limits,
            policy=POLICIES[STATIC],
        )
        return actor, hashes

    def _read_id(self, table: TableReader) -> str:
        actor_id = table.require("id", str)
        if actor_id is None:
            return ""
        if not ACTOR_ID.fullmatch(actor_id):
            table.add_problem("id", ACTOR_ID_RULE)
        # The path of this entry, unless an earlier one has the same id.
        first = self.path_by_id.setdefault(actor_id, table.path_of("id"))
        if first != table.path_of("id"):
            table.add_problem("id", f"is the same as {first}; list all tokens of one actor in its token_sha256")
        return actor_id

    def _read_hashes(self, table: TableReader) -> list[str]:
        hashes = []
        values = table.take_strings("token_sha256", is_required=True)
        if values == []:
            table.add_problem("token_sha256", "must list at least one hash")
        for index, value in enumerate(values or ()):
            key = f"token_sha256[{index}]"
            if not _SHA256.fullmatch(value):
                table.add_problem(key, _explain_hash(value))
                continue
            first = self.path_by_hash.setdefault(value.lower(), table.path_of(key))
            if first != table.path_of(key):
                table.add_problem(key, f"is the same as {first}")
            hashes.append(value.lower())
        return hashes

    def _read_limits(
        self, table: TableReader, max_in_flight: int | None, *, is_required: bool
    ) -> dict[Feature, RateLimit]:
        limits_table = table.take_table("limits")
        if limits_table is None or not limits_table.keys:
            if is_required:
                table.add_problem("limits", f"must have at least one of {', '.join(Feature)}")
            return {}
        limits = {}
        for feature in Feature:
            limit_table = limits_table.take_table(feature.value)
            limit = None if limit_table is None else self._read_limit(limit_table, feature, max_in_flight)
            if limit is not None:
                limits[feature] = limit
        limits_table.finish()
        return limits

    def _read_limit(self, table: TableReader, feature: Feature, max_in_flight: int | None) -> RateLimit | None:
        # All keys are read before the first return, so that each problem is found, and none is called unknown.
        limit = table.require("limit", int)
        unit = _read_unit(table, feature)
        interval_ms = _read_interval(table, "interval", is_required=True)
        models = _read_models(table)
        concurrent_requests = table.take("concurrent_requests", int)
        concurrent_interval_ms = _read_interval(table, "concurrent_requests_interval", is_required=False)
        own_max_in_flight = _read_max_in_flight(table)
        table.finish()
        if limit is None or interval_ms is None:
            return None  # the rest depends on them
        if concurrent_interval_ms is None:
            concurrent_interval_ms = self.interval_ms
        if concurrent_requests is None:
            concurrent_requests = 1  # stays so only if the intervals are wrong, which is a problem of its own
            if interval_ms > 0 and concurrent_interval_ms > 0:
                concurrent_requests = derive_concurrent_requests(
                    limit, interval_ms, self.percentage, concurrent_interval_ms
                )
        for problem in rate_limit_problems(limit, interval_ms, concurrent_requests, concurrent_interval_ms):
            # These problems begin with the name of the number, which is its key here.
            key, _, rest = problem.partition(" ")
            table.add_problem(key, rest)
        if own_max_in_flight is not None:
            max_in_flight = own_max_in_flight
        return RateLimit(limit, interval_ms, models, concurrent_requests, concurrent_interval_ms, unit, max_in_flight)


def _read_interval(table: TableReader, key: str, *, is_required: bool) -> int | None:
    text = table.require(key, str) if is_required else table.take(key, str)
    if text is None:
        return None
    try:
        # Less than half a millisecond becomes 0, which rate_limit_problems refuses.
        return round(parse_duration(text) * 1000)
    except ValueError as problem:
        table.add_problem(key, str(problem))
        return None


def _read_unit(table: TableReader, feature: Feature) -> LimitUnit:
    text = table.take("unit", str)
    if text is None:
        return default_unit(feature)
    try:
        return LimitUnit(_UNIT.parse(text))
    except ValueError as problem:
        table.add_problem("unit", str(problem))
        # Any unit will do: with a problem, the file is refused as a whole.
        return LimitUnit.REQUESTS


def default_unit(feature: Feature) -> LimitUnit:
    """Return the default unit of a quota for ``feature``: embeddings count tokens, as in the reference."""
    return LimitUnit.TOKENS if feature is Feature.EMBEDDINGS else LimitUnit.REQUESTS


def _read_max_in_flight(table: TableReader) -> int | None:
    value = table.take("max_in_flight", int)
    if value is not None and not 1 <= value <= MAX_IN_FLIGHT:
        table.add_problem("max_in_flight", f"must be from 1 to {MAX_IN_FLIGHT}, not {value}")
        return None
    return value


def _read_models(table: TableReader) -> tuple[str, ...]:
    models = table.take_strings("allowed_models")
    # `*` counts only as the one entry of the list (the reference's §1.2); beside others it would be ignored, so it is a
    # problem.
    if models is None or models == [ANY_MODEL]:
        return (ANY_MODEL,)
    if not models:
        table.add_problem("allowed_models", 'must name at least one model, or be ["*"]')
    for index, model in enumerate(models):
        if model == ANY_MODEL:
            table.add_problem(f"allowed_models[{index}]", '"*" must stand alone')
        elif not _MODEL.fullmatch(model):
            table.add_problem(f"allowed_models[{index}]", "must be provider/model, as anthropic/claude-3-opus-20240229")
    return tuple(dict.fromkeys(models))  # without duplicates, in the file's order


def _explain_hash(value: str) -> str:
    expected = "must be the SHA-256 of a token, 64 hex digits"
    if re.fullmatch(r"[0-9a-fA-F]*", value):
        return f"{expected}; it has {len(value)}"
    # Someone pasted the token: say so, without repeating it.
    if len(value) >= 16 and " " not in value and "<" not in value:
        return f"{expected}; this looks like a token itself: use the output of `printf %s TOKEN | sha256sum`"
    return expected
