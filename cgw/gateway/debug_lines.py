"""Debug lines of exchanges, apart from their path. Each has its request's id, as every line does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from cgw.limits.admissions import Admission
from cgw.model import Feature
from cgw.providers.dialect import PreparedRequest

logger = logging.getLogger("cgw.gateway")


are_on: Callable[[], bool] = partial(logger.isEnabledFor, logging.DEBUG)
"""Tells whether debug lines are logged."""


def log_routed(feature: Feature, prepared: PreparedRequest, body_bytes: int) -> None:
    """Log where a checked request goes. Nothing of its body."""
    upstream = prepared.upstream
    logger.debug(
        "routed: feature=%s model=%s upstream=%s stream=%s bytes=%d max_tokens=%s",
        feature,
        prepared.model,
        upstream.origin,
        prepared.is_stream,
        body_bytes,
        prepared.max_completion_tokens,
    )


def log_admitted(admission: Admission) -> None:
    """Log the limits that let a request through, and what they have left."""
    states = ", ".join(f"{state.name} {state.remaining} of {state.limit} {state.unit}" for state in admission.states)
    place = "in this process, without Redis" if admission.is_local else "in Redis"
    logger.debug("admitted: left are %s; counted %s", states or "no limits", place)


def log_settled(admission: Admission, is_charged: bool, tokens: int | None) -> None:
    """Log what a request was charged in the end."""
    if is_charged:
        unit = "1 request" if tokens is None else f"1 request, {tokens} tokens"
        logger.debug("settled: charged %s to %s", unit, admission.actor.id)
    else:
        logger.debug("settled: refunded to %s", admission.actor.id)
