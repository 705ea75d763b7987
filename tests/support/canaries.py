"""Marked secrets and prompts, and the search for them in whatever a gateway leaves behind."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

from attrs import field, frozen

from cgw.testing.scripted_portal import CLIENT_SECRET
from cgw.testing.scripted_sourcegraph import SERVICE_TOKEN


def mark(name: str, length: int = 40) -> str:
    """Return hexadecimal digits that stand nowhere else."""
    return hashlib.sha256(f"canary {name}".encode()).hexdigest()[:length]


@frozen
class Canary:
    """A marked ``value``. ``allowed`` are the outputs that may hold it, with the reason in the test."""

    name: str
    value: str = field(repr=False)
    allowed: frozenset[str] = frozenset()
    forms: tuple[bytes, ...] = field(repr=False, init=False)
    """The forms to look for, in lower case: as it is, in URLs and JSON, in hexadecimal, in base64 at each offset."""

    @forms.default
    def _build_forms(self) -> tuple[bytes, ...]:
        data = self.value.encode()
        forms = {data, quote(self.value, safe="").encode(), json.dumps(self.value)[1:-1].encode(), data.hex().encode()}
        for offset in range(3):
            encoded = base64.b64encode(b"\0" * offset + data)
            # Without the characters that what precedes and follows has a part in.
            forms.add(encoded[4 if offset else 0 : -4])
        return tuple(form.lower() for form in forms)


class Canaries:
    """All canaries of a test, by name: ``canaries["prompt"].value``."""

    def __init__(self, canaries: Iterable[Canary]) -> None:
        self._canaries = {canary.name: canary for canary in canaries}

    def __getitem__(self, name: str) -> str:
        return self._canaries[name].value

    def __iter__(self) -> Iterator[Canary]:
        return iter(self._canaries.values())

    def find(self, output: str, data: bytes) -> list[str]:
        """Return a sentence with the surroundings for each canary in ``data`` that ``output`` may not hold."""
        lowered = data.lower()
        found = []
        for canary in self:
            for form in canary.forms:
                at = lowered.find(form)
                if at >= 0 and output not in canary.allowed:
                    around = data[max(0, at - 200) : at + len(form) + 40]
                    found.append(f"{output} holds {canary.name}: …{around!r}…")
                    break
        return found


def build_canaries() -> Canaries:
    """Return the operator's secrets, the callers' tokens, and what callers and models said."""
    operator = {
        "anthropic key": f"sk-ant-{mark('anthropic')}",
        "openai key": f"sk-{mark('openai')}",
        "fireworks key": f"fw_{mark('fireworks')}",
        "google key": f"AIza{mark('google')}",
        "compatible key": mark("compatible"),
        "embeddings token": mark("embeddings"),
        "diagnostics secret": mark("diagnostics"),
        "redis password": mark("redis"),
        "slack path": mark("slack"),
        "dotcom token": SERVICE_TOKEN,
        "sams secret": CLIENT_SECRET,
        "sentry key": mark("sentry", 32),
        "otlp header": mark("otlp"),
        "sink secret": mark("sink"),
    }
    callers = {
        "static token": f"cgw_{mark('static', 64)}",
        "disabled token": f"cgw_{mark('disabled', 64)}",
        "user token": f"sgd_{mark('user', 64)}",
        "subscription token": f"slk_{mark('subscription', 64)}",
        "unknown token": f"cgw_{mark('unknown', 64)}",
        "unknown user token": f"sgd_{mark('unknown user', 64)}",
        "odd token": mark("odd"),
        "wrong secret": mark("wrong secret"),
        "reader token": f"sams_at_{mark('reader')}",
    }
    words = {
        "prompt": f"prompt {mark('prompt')} with words",
        "system prompt": mark("system"),
        "tool argument": mark("tool"),
        "key of a body": mark("key"),
        "answer": mark("answer"),
        "embedded text": mark("embedded"),
        "snippet": mark("snippet"),
    }
    # A client's own words come back to it; the upstream's answer is one of them.
    own = frozenset({"replies"})
    # Redis keeps flagged prompts of Sourcegraph.com's users, and their events have the beginning (docs/operations.md);
    # whoever has SAMS's leave reads them by /maintenance.
    flagged = Canary("flagged prompt", mark("flagged"), own | {"events", "redis"})
    secrets = [Canary(name, value) for name, value in {**operator, **callers}.items()]
    return Canaries([*secrets, *(Canary(name, value, own) for name, value in words.items()), flagged])


def check_nothing_found(canaries: Canaries, contents: Sequence[tuple[str, bytes]]) -> None:
    """Fail, with all that was found, if one of ``contents`` (the name of an output, and a part of it) has a canary."""
    found = [sentence for output, data in contents for sentence in canaries.find(output, data)]
    assert not found, "\n".join(found)
