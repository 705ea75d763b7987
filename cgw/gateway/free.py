"""The exchange of routes that cost nothing upstream, such as counting tokens: limited by a rate of their own.

They leave no usage event, as there is nothing to bill: the log has a line for each. What is refused leaves a
``RateLimited`` event with the cause ``free``.
"""

from __future__ import annotations

from collections.abc import Awaitable

from cgw.gateway.admission import AdmittedRequest, admit_free
from cgw.gateway.exchange import Exchange
from cgw.gateway.own_answers import CUT
from cgw.gateway.phases import Phase
from cgw.limits.admissions import Admission
from cgw.model import Actor, Feature, RateLimit
from cgw.providers.dialect import PreparedRequest


class FreeExchange(Exchange):
    """An exchange whose dialect is a :class:`~cgw.providers.route.FreeRoute`."""

    def _admit(
        self, actor: Actor, feature: Feature, rate_limit: RateLimit, prepared: PreparedRequest
    ) -> Awaitable[Admission]:
        # Not flagged: no model sees the prompt.
        prepared.prompt = None
        dialect, head = self._dialect, self._client.head
        return admit_free(
            self._gateway, actor, feature, dialect.errors, head, provider=dialect.provider, rate_limit=rate_limit
        )

    def _record_usage(self, admitted: AdmittedRequest) -> bool:
        state = self.state
        state.move(Phase.RECORDING, state.relayed_at)
        if state.is_cut:
            state.status = CUT.status
        return False
