"""The exchange of embeddings whose answers are passed on as they come: the routes of providers' own APIs."""

from __future__ import annotations

from cgw.gateway.admission import AdmittedRequest
from cgw.gateway.exchange import Exchange
from cgw.limits.tokens import estimate_tokens
from cgw.model import UsageEvent, UsageQuality


class RelayedEmbeddingsExchange(Exchange):
    """An exchange that leaves an ``EmbeddingsFinished`` event, as those of ``/v1/embeddings`` do."""

    def _build_event(self, admitted: AdmittedRequest) -> UsageEvent:
        state, prepared = self.state, admitted.prepared
        usage = state.read_usage(self._dialect, prepared)
        # There is nothing to stream; all other dialects tell whether they do.
        prepared.metadata = {name: value for name, value in prepared.metadata.items() if name != "stream"}
        tokens, quality = None, UsageQuality.ESTIMATED
        if state.is_charged and usage is not None:
            tokens, quality = usage.prompt_token_count, usage.quality
            if tokens is None:
                # Some models tell no tokens: an estimate is charged, instead of the size of the vectors.
                tokens, quality = estimate_tokens(prepared.prompt_character_count, 0), UsageQuality.ESTIMATED
            state.used_tokens = tokens
        return state.build_embeddings_event(admitted, self._dialect.provider, tokens, quality)
