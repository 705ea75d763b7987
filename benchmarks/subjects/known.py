"""The subjects that are known by name, and subjects from the command line."""

from __future__ import annotations

import shlex
from pathlib import Path

from attrs import frozen

from benchmarks.subjects.base import Address, Start, Subject
from benchmarks.subjects.gateways import LITELLM_ROUTES, LiteLLM, Portkey
from benchmarks.subjects.own import BareRelay, Cgw
from benchmarks.subjects.proxies import GoReverseProxy, Haproxy, Nginx
from benchmarks.tool_processes import Target

__all__ = ["DIRECT", "CommandSubject", "known_subjects", "parse_subject"]

DIRECT = "direct"
"""No gateway: the load generator connects to the upstream. Its figures are the cost of the suite itself."""

DEFAULT_PATH = "/v1/chat/completions"


def known_subjects() -> dict[str, Subject]:
    subjects: list[Subject] = [
        Cgw(),
        Cgw("cgw-tick0", {"CODY_GATEWAY_RELAY_TICK": "0"}),
        Cgw("cgw-silent", {"CODY_GATEWAY_LOG_LEVEL": "ERROR"}),
        Cgw("cgw-traced", is_traced=True),
        BareRelay(),
        Nginx(),
        Haproxy(),
        GoReverseProxy(),
        *(LiteLLM(name) for name in LITELLM_ROUTES),
        Portkey(),
    ]
    return {subject.name: subject for subject in subjects}


@frozen
class CommandSubject:
    """Any program that proxies to ``{upstream_host}:{upstream_port}`` and listens on ``{port}`` of 127.0.0.1."""

    name: str
    command: str
    start_seconds: float = 60.0
    has_tls: bool = False
    has_http2: bool = False

    def version(self) -> str:
        return self.command

    def prepare(self, directory: Path, port: int, upstream: Address) -> Start:
        values = {
            "port": str(port),
            "upstream_host": upstream.host,
            "upstream_port": str(upstream.port),
            "path": DEFAULT_PATH,
        }
        command = tuple(_fill(word, values) for word in shlex.split(self.command))
        return Start(command=command, target=Target(port))


def parse_subject(text: str) -> Subject:
    """Parse ``name=command``, or ``name=directory`` for the cgw of another checkout.

    Raises :exc:`ValueError` with a sentence for people.
    """
    name, equals, command = text.partition("=")
    if not equals or not name.strip() or not command.strip():
        raise ValueError(
            "must be name=command, for example 'mine=./proxy --listen {port} --to {upstream_host}:{upstream_port}'"
        )
    checkout = Path(command.strip())
    if (checkout / "cgw" / "__main__.py").is_file():
        return Cgw(name.strip(), checkout=checkout.resolve())
    if "{port}" not in command:
        raise ValueError("the command must contain {port}, the port to listen on")
    try:
        shlex.split(command)
    except ValueError as error:
        raise ValueError(f"the command cannot be split into words: {error}") from error
    return CommandSubject(name.strip(), command.strip())


def _fill(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace("{" + name + "}", value)
    return word
