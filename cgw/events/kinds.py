"""The kinds of usage event, with every key of their metadata: its type, unit and meaning.

Declared as typed dictionaries: mypy checks that :mod:`cgw.events.records` writes only these keys, with values of these
types, and at run time they are plain dictionaries. Completions are built as a Struct with the same keys and types; a
test compares the two.
``docs/events.md`` is generated from them by ``python -m docs.generate_events``.
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict, get_type_hints

from attrs import frozen

from cgw.model import EventName

UNKNOWN = "it is unknown"
EARLIER = "an earlier version recorded it"


@frozen
class Key:
    """A key's meaning. ``absent`` is when an event is without it, ``""`` for never; ``is_own``: not the reference's."""

    meaning: str
    unit: str = ""
    absent: str = ""
    is_own: bool = False


@frozen
class EventKind:
    """A kind of event, when it is recorded, and the typed dictionary of its metadata."""

    name: EventName
    when: str
    metadata: type[Any]


def list_keys(metadata: type[Any]) -> dict[str, tuple[Any, Key]]:
    """Return the type and the meaning of each key of ``metadata``, by its name, in the order of declaration."""
    hints = get_type_hints(metadata, include_extras=True)
    return {name: (hint.__origin__, hint.__metadata__[0]) for name, hint in hints.items()}


class SgActor(TypedDict, total=False):
    """The Sourcegraph user at the caller's instance, in the form of Sourcegraph's own services; one of these keys."""

    UID: Annotated[int, Key("the user's number", absent="the header is not a number")]
    AnonymousUID: Annotated[str, Key("the id of a user who is not signed in", absent="there is a `UID`")]
    Internal: Annotated[bool, Key("true: a service of the instance", absent="it is not `internal`")]


class FlaggingResult(TypedDict, total=False):
    """The findings of flagging in a prompt."""

    reason: Annotated[list[str], Key("the names of the rules that the request meets")]
    should_block: Annotated[bool, Key("whether a rule refuses the request")]
    blocked_phrase: Annotated[
        str, Key("the beginning of the phrase that was found, 5 bytes at most", absent="none was")
    ]
    prompt_prefix: Annotated[
        str, Key("the beginning of the prompt, 250 bytes at most", absent="the actor is not a user of Sourcegraph.com")
    ]
    prompt_token_count: Annotated[
        int, Key("the prompt's length", "tokens", "no rule asks for it; the reference writes −1", is_own=True)
    ]
    prompt_token_count_quality: Annotated[
        str, Key("whether that is `exact` or `estimated`", absent="there is none", is_own=True)
    ]


# In the functional form, for the dot in the name.
SgActorKey = TypedDict(
    "SgActorKey",
    {
        "sg.actor": Annotated[
            SgActor, Key("the same user, in the form of Sourcegraph's own services", absent="both headers are")
        ]
    },
    total=False,
)


class Traced(TypedDict, total=False):
    """The link to the exchange's trace."""

    trace_id: Annotated[
        str,
        Key(
            "the exchange's id, 32 hexadecimal digits: that of its trace, of its line in the log, and of a prompt that "
            "flagging keeps",
            absent=EARLIER,
        ),
    ]


class Counted(TypedDict, total=False):
    """Refusals that repeat each other."""

    count: Annotated[
        int, Key("the refusals that this event stands for: the first at once, further ones once a second", is_own=True)
    ]


class CountedAgain(TypedDict, total=False):
    """Refusals that repeat each other, without the number for the first."""

    count: Annotated[
        int, Key("the refusals that this event stands for, as for `RateLimited`", absent="it is the first", is_own=True)
    ]


class InstanceUser(SgActorKey, total=False):
    """The Sourcegraph user at the caller's instance."""

    sg_actor_id: Annotated[str, Key("the header `X-Sourcegraph-Actor-UID`", absent="the header is")]
    sg_actor_anonymous_uid: Annotated[
        str, Key("the header `X-Sourcegraph-Actor-Anonymous-UID`", absent="the header is")
    ]


class Flagged(TypedDict, total=False):
    """A prompt that was flagged."""

    flagged: Annotated[bool, Key("true: the prompt is flagged", absent="it is not flagged")]
    flagging_result: Annotated[FlaggingResult, Key("the rules that it meets", absent="it is not flagged")]


class Asked(TypedDict, total=False):
    """The part of the request that limits and prices depend on."""

    feature: Annotated[str, Key("`chat_completions`, `code_completions` or `embeddings`")]
    model: Annotated[str, Key("`provider/model`")]


class Exchanged(Traced, total=False):
    """The exchange: what became of it, when, how large, how quick."""

    outcome: Annotated[
        str,
        Key(
            "`completed`; `client_gone`: the client left before its answer was whole; `upstream_broken`: the upstream "
            "broke off or could not be reached; `timed_out`: it took too long; `refused`: by the upstream or by cgw",
            absent=EARLIER,
            is_own=True,
        ),
    ]
    started_at: Annotated[float, Key("when the request came", "Unix seconds", EARLIER, is_own=True)]
    ended_at: Annotated[
        float, Key("when the answer was relayed, but for its end", "Unix seconds", EARLIER, is_own=True)
    ]
    request_bytes: Annotated[int, Key("the request's body", "bytes", EARLIER, is_own=True)]
    response_bytes: Annotated[int, Key("the answer's body, as far as it came", "bytes", EARLIER, is_own=True)]
    response_chunks: Annotated[
        int, Key("the pieces that it came in", "", "none came; never with embeddings", is_own=True)
    ]
    time_to_first_byte_ms: Annotated[
        float, Key("from the request to the first byte of the answer's body", "ms", "none came", is_own=True)
    ]
    overhead_ms: Annotated[
        float,
        Key(
            "cgw's own part: from the request to asking the upstream, with reading the body, checks and limits",
            "ms",
            EARLIER,
            is_own=True,
        ),
    ]


class Answered(TypedDict, total=False):
    """The answer's status, and how long it took."""

    upstream_request_duration_ms: Annotated[
        int, Key("from asking the upstream to the end of its answer", "ms", "the upstream was not asked")
    ]
    resolved_status_code: Annotated[int, Key("the status that the client got; 499 when it left before there was one")]


class Named(TypedDict, total=False):
    """The actor, for reports."""

    actor_name: Annotated[str, Key("the actor's name", absent="it has none", is_own=True)]


class PromptFigures(TypedDict, total=False):
    """The size of a prompt."""

    prompt_character_count: Annotated[int, Key("the prompt's text", "characters", UNKNOWN)]
    prompt_token_count: Annotated[
        int, Key("the whole prompt, with what the provider's cache had, as the provider counts it", "tokens", UNKNOWN)
    ]
    prompt_cache_read_token_count: Annotated[
        int, Key("the part of it that was read from the provider's cache", "tokens", "it is 0 or unknown", is_own=True)
    ]
    prompt_cache_write_token_count: Annotated[
        int, Key("the part of it that was written to that cache", "tokens", "it is 0 or unknown", is_own=True)
    ]


class CompletionFigures(TypedDict, total=False):
    """The size of a completion."""

    completion_character_count: Annotated[
        int, Key("the answer's text, thinking and calls of tools", "characters", "a long answer was not held whole")
    ]
    completion_token_count: Annotated[int, Key("the answer, as the provider counts it", "tokens", UNKNOWN)]
    completion_reasoning_token_count: Annotated[
        int, Key("of ``completion_token_count``: thinking that is not shown", "tokens", "there was none", is_own=True)
    ]
    usage_quality: Annotated[
        str,
        Key(
            "how reliable the tokens are: `exact`, the provider's own; `partial`, of an answer that broke off, and "
            "perhaps too low; `estimated`, the provider sent none",
            is_own=True,
        ),
    ]


class PassAsked(TypedDict, total=False):
    """The path of a pass route, which says nothing else of what was asked for."""

    route: Annotated[str, Key("method and pattern of a pass route", absent="the route is another", is_own=True)]


class CompletionAsked(Asked, total=False):
    """The request for a completion."""

    provider: Annotated[str, Key("the provider that was asked")]
    stream: Annotated[bool, Key("whether a stream was asked for", absent="the route is not read")]
    max_tokens: Annotated[int, Key("the most tokens asked for, with Anthropic's Messages", "tokens", "not asked for")]
    route: Annotated[str, Key("method and pattern of a pass route", absent="the route is read", is_own=True)]
    max_tokens_to_sample: Annotated[
        int, Key("the most tokens asked for, with Anthropic's Text Completions", "tokens", "not asked for")
    ]


class CompletionAnswered(Answered, total=False):
    """The upstream's answer to a completion."""

    upstream_status_code: Annotated[int, Key("the upstream's status", absent="it did not answer")]


class CompletionsFinished(
    CompletionAsked,
    PassAsked,
    PromptFigures,
    CompletionFigures,
    CompletionAnswered,
    Exchanged,
    Named,
    InstanceUser,
    Flagged,
    total=False,
):
    """The metadata of ``CompletionsFinished``."""

    full_prompt: Annotated[str, Key("the prompt", absent="the actor is not in `CODY_GATEWAY_IDENTIFIERS_TO_LOG_FOR`")]


class EmbeddingsAsked(Asked, total=False):
    """The request for embeddings, and what they took."""

    provider: Annotated[str, Key("the provider that was asked", is_own=True)]
    batch_size: Annotated[int, Key("texts in the request")]
    input_character_count: Annotated[int, Key("the texts together", "characters")]
    tokens_used: Annotated[int, Key("the texts, as the provider counts them", "tokens", "there is no answer")]
    usage_quality: Annotated[
        str,
        Key("`exact`: the provider's own figure; `estimated`: it sent none", absent="`tokens_used` is", is_own=True),
    ]


class EmbeddingsAnswered(Answered, total=False):
    """The upstream's answer to embeddings."""

    upstream_status_code: Annotated[int, Key("the upstream's status", absent="it did not answer", is_own=True)]


class EmbeddingsFinished(EmbeddingsAsked, EmbeddingsAnswered, Exchanged, Named, total=False):
    """The metadata of ``EmbeddingsFinished``."""


class RateLimited(Traced, Counted, total=False):
    """The metadata of ``RateLimited``."""

    error: Annotated[str, Key("a stable text for each `cause` and `feature`")]
    feature: Annotated[str, Key("`chat_completions`, `code_completions` or `embeddings`")]
    cause: Annotated[str, Key("the limit that refused: `quota`, `concurrency`, `in_flight`, `provider`, `free`")]
    limit: Annotated[int, Key("its size", "`unit`", is_own=True)]
    unit: Annotated[str, Key("`requests` or `tokens`", is_own=True)]
    window_ms: Annotated[int, Key("the time that it holds for", "ms", "it bounds requests at once", is_own=True)]
    retry_after_ms: Annotated[
        int, Key("when the caller was told to come back", "ms", "waiting is pointless", is_own=True)
    ]


class RequestBlocked(Asked, InstanceUser, Flagged, Traced, Counted, total=False):
    """The metadata of ``RequestBlocked``."""

    provider: Annotated[str, Key("the provider that would have been asked")]
    prompt_token_count: Annotated[int, Key("the prompt's length", "tokens", "no rule asks for it")]
    max_tokens_to_sample: Annotated[int, Key("the most tokens asked for", "tokens", "not asked for")]


class Unauthorized(Traced, CountedAgain, total=False):
    """The metadata of ``Unauthorized``."""

    reason: Annotated[str, Key("why the source denies the token; never the token")]


class AccessDenied(Traced, CountedAgain, total=False):
    """The metadata of ``AccessDenied``."""


KINDS = (
    EventKind(
        EventName.COMPLETIONS_FINISHED,
        "A completion passed the check of its model, whatever became of it.",
        CompletionsFinished,
    ),
    EventKind(
        EventName.EMBEDDINGS_FINISHED,
        "Embeddings passed the check of their model, whatever became of them.",
        EmbeddingsFinished,
    ),
    EventKind(EventName.RATE_LIMITED, "A limit refused a request.", RateLimited),
    EventKind(EventName.REQUEST_BLOCKED, "A request was refused for its prompt.", RequestBlocked),
    EventKind(
        EventName.UNAUTHORIZED,
        "A source knows the token and denies it. The `identifier` is `unknown`.",
        Unauthorized,
    ),
    EventKind(EventName.ACCESS_DENIED, "The actor's access is switched off.", AccessDenied),
)
