"""A gateway process with every source, provider and secret, whose upstreams repeat what they are sent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio
from attrs import define, field

from cgw.actors.tokens import hash_token
from cgw.control.maintenance import SCOPE
from cgw.lifetime import open_background_task
from cgw.redis.address import RedisAddress
from cgw.redis.handshake import ask, connect
from cgw.testing.json_server import JsonAnswer, JsonCall, open_json_server
from cgw.testing.scripted_portal import CLIENT_ID, ScriptedAccess, ScriptedPortal, open_scripted_portal
from cgw.testing.scripted_sourcegraph import ScriptedSourcegraph, ScriptedUser, open_scripted_sourcegraph
from tests.support.canaries import Canaries, build_canaries
from tests.support.collectors import Receiver, open_receiver
from tests.support.embeddings import build_kserve_answer, build_openai_answer
from tests.support.process import GatewayProcess, open_gateway_process
from tests.support.raw_server import open_raw_server, read_request
from tests.support.redis_server import RedisServer, run_server_process

CRASHING = Path(__file__).with_name("crashing_cgw.py")

SETTINGS_COMMANDS = ("config", "config --json", "config --changed", "check --running")
STATE_COMMANDS = ("actors list", "usage", "usage --json", "limits show", "limits show --json")

ACTORS = """
[[actor]]
id = "acme"
token_sha256 = ["{token}"]
[actor.limits.chat_completions]
limit = 100000
interval = "24h"
concurrent_requests = 100000
[actor.limits.code_completions]
limit = 3
interval = "24h"
concurrent_requests = 100000
[actor.limits.embeddings]
limit = 100000
interval = "24h"
concurrent_requests = 100000
[[actor]]
id = "initech"
token_sha256 = ["{disabled}"]
access_enabled = false
"""


@define
class EchoUpstream:
    """A provider of every API: it answers, or does what ``mode`` says with all that it was sent.

    A number is a status, with the whole request in the body; ``broken head`` puts it into a line that is no header
    field, ``broken body`` ends in the middle of it.
    """

    answer: str
    mode: int | str = 200
    is_body_first: bool = True

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection."""
        while (found := await read_request(stream)) is not None:
            request, body = found
            # Of these only the beginning is logged, if anything is.
            parts = [body.decode("utf-8", "replace"), bytes(request.target).decode(), str(request.headers)]
            sent = json.dumps(parts if self.is_body_first else parts[::-1])
            if self.mode == 200:
                await stream.send_all(self._answer(bytes(request.target), body))
                continue
            if isinstance(self.mode, int):
                content = json.dumps({"error": {"type": "echo", "message": sent}}).encode()
                head = f"HTTP/1.1 {self.mode} x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
                await stream.send_all(head.encode() + b"\r\n\r\n" + content)
                continue
            if self.mode == "broken head":
                await stream.send_all(b"HTTP/1.1 200 OK\r\n" + sent.encode() + b"\r\n\r\n")
            else:
                await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n" + sent.encode())
            return

    def _answer(self, target: bytes, body: bytes) -> bytes:
        asked = json.loads(body)
        if b"embeddings" in target:
            content = json.loads(build_openai_answer(asked))
        elif "inputs" in asked:
            content = json.loads(build_kserve_answer(asked))
        else:
            text, message = self.answer, {"role": "assistant", "content": self.answer}
            content = {
                "type": "message",
                "content": [{"type": "text", "text": text}],
                "choices": [{"index": 0, "message": message, "delta": message, "text": text}],
                "candidates": [{"content": {"parts": [{"text": text}]}}],
                "completion": text,
                "usage": {"input_tokens": 9, "output_tokens": 3, "prompt_tokens": 9, "completion_tokens": 3},
                "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 3},
            }
        kind, data = "application/json", json.dumps(content)
        if asked.get("stream") or b"stream" in target:
            kind = "text/event-stream"
            data = f"data: {data}\n\nevent: message_stop\ndata: {{}}\n\ndata: [DONE]\n\n"
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
        return (head + data).encode()


@define
class CanaryBench:
    """The process, what it talks to, and how to ask it. ``replies`` are bodies that clients got."""

    gateway: GatewayProcess
    canaries: Canaries
    environ: dict[str, str] = field(repr=False)
    upstream: EchoUpstream
    sourcegraph: ScriptedSourcegraph
    portal: ScriptedPortal
    receiver: Receiver
    redis: RedisServer
    folder: Path
    monitored: bytearray = field(factory=bytearray, repr=False)
    """All commands that Redis was sent."""
    replies: list[bytes] = field(factory=list, repr=False)

    async def read_outputs(self, *, with_settings: bool = False) -> list[tuple[str, bytes]]:
        """Return all that the process has left behind, by the output's name.

        ``with_settings`` adds the commands that show settings: what they print is the same whatever was asked before.
        """
        contents = [("log", self.gateway.log_path.read_bytes()), ("redis", bytes(self.monitored))]
        contents += [("redis", part) for part in await self._dump_redis()]
        contents += self.read_posts()
        contents.append(("metrics", await self._scrape()))
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                name = "events" if path.parent.name == "events" else "data directory"
                contents += [(name, path.read_bytes()), (name, path.name.encode())]
        printed: dict[str, bytes] = {}

        async def run(command: str) -> None:
            printed[f"cgw {command}"] = await self.run_cgw(*command.split())

        async with trio.open_nursery() as command_nursery:
            for command in STATE_COMMANDS + (SETTINGS_COMMANDS if with_settings else ()):
                command_nursery.start_soon(run, command)
        return [*contents, *printed.items()]

    async def _scrape(self) -> bytes:
        secret = {"authorization": f"Bearer {self.canaries['diagnostics secret']}"}
        async with httpx.AsyncClient(base_url=self.gateway.url, headers=secret, timeout=30) as client:
            answer = await client.get("/-/metrics", headers={"accept": "application/openmetrics-text"})
        assert answer.status_code == 200
        return answer.content

    def read_posts(self) -> list[tuple[str, bytes]]:
        """Return what was sent to the collector, to Sentry and to the sink of usage events."""
        return [(find_receiver(post.path), post.body) for post in self.receiver.posts]

    async def run_cgw(self, *arguments: str) -> bytes:
        """Return what another command of cgw prints in the gateway's environment."""
        command = [sys.executable, "-m", "cgw", *arguments]
        with trio.fail_after(30):
            ended = await trio.run_process(
                command,
                env=self.environ,
                check=False,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        return bytes(ended.stdout)

    async def _dump_redis(self) -> list[bytes]:
        reads = {
            b"string": ("GET", "{}"),
            b"hash": ("HGETALL", "{}"),
            b"set": ("SMEMBERS", "{}"),
            b"zset": ("ZRANGE", "{}", "0", "-1"),
            b"list": ("LRANGE", "{}", "0", "-1"),
        }
        keys = await self.ask_redis("KEYS", "*")
        assert isinstance(keys, list)
        parts: list[bytes] = []
        for key in keys:
            kind = await self.ask_redis("TYPE", key)
            if kind == b"none":
                continue  # expired meanwhile; what was written to it is among the commands
            command = [part if part != "{}" else key for part in reads[kind if isinstance(kind, bytes) else b""]]
            parts += [key, repr(await self.ask_redis(*command)).encode()]
        return parts

    async def ask_redis(self, *command: str | bytes) -> object:
        """Return the reply of Redis."""
        return await self.ask_redis_with(self.canaries["redis password"], *command)

    async def ask_redis_with(self, password: str, *command: str | bytes) -> object:
        """Return the reply of Redis, whose password has been changed."""
        return await _ask_redis(self.redis, password, *command)

    def echo(self, call: JsonCall) -> JsonAnswer:
        """Return a service's error with all that it was sent."""
        text = f"{call.target} {call.headers} {call.body.decode()}"
        return JsonAnswer({"errors": [{"message": text}], "error": text, "code": "internal", "message": text}, 500)


def find_receiver(path: str) -> str:
    """Return the output that is posted to ``path``."""
    names = {"envelope": "sentry", "traces": "spans", "metrics": "metrics", "events": "events"}
    return names[path.strip("/").rpartition("/")[2]]


async def _ask_redis(server: RedisServer, password: str, *command: str | bytes) -> object:
    address = RedisAddress(path=str(server.path), password=password)
    connection = await connect(address, 10, 10)
    try:
        with trio.fail_after(10):
            return await ask(connection, *command)  # type: ignore[arg-type]  # keys are bytes
    finally:
        await trio.aclose_forcefully(connection.stream)


@asynccontextmanager
async def _monitor(server: RedisServer, password: str, into: bytearray) -> AsyncIterator[None]:
    """Append every command that ``server`` gets to ``into`` while the block runs."""
    connection = await connect(RedisAddress(path=str(server.path), password=password), 10, 10)

    async def run() -> None:
        await connection.stream.send_all(b"MONITOR\r\n")
        while data := await connection.stream.receive_some(65536):
            into.extend(data)

    try:
        async with open_background_task(run):
            yield
    finally:
        await trio.aclose_forcefully(connection.stream)


@asynccontextmanager
async def open_canary_bench(
    tmp_path: Path, redis_folder: Path, log_format: str, more: Callable[[Canaries], dict[str, str]] = lambda _: {}
) -> AsyncIterator[CanaryBench]:
    """Run it all while the block runs. ``more`` are further settings; ``redis_folder`` has a short path."""
    canaries = build_canaries()
    upstream = EchoUpstream(canaries["answer"])
    folder = tmp_path / "data"
    folder.mkdir()
    socket = redis_folder / "redis.sock"
    password = canaries["redis password"]
    options = ("--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(redis_folder))

    async def refuse_alert(call: JsonCall) -> JsonAnswer:
        return JsonAnswer({"echo": call.target}, 500)

    with run_server_process(socket, *options, "--requirepass", password) as redis, open_receiver() as receiver:
        async with (
            open_raw_server(upstream.serve) as port,
            open_scripted_sourcegraph() as sourcegraph,
            open_scripted_portal() as portal,
            open_json_server(refuse_alert) as slack_url,
        ):
            sourcegraph.users[canaries["user token"]] = ScriptedUser(7)
            access = ScriptedAccess("00000000-0000-0000-0000-000000000001", (canaries["subscription token"],))
            portal.accesses.append(access)
            portal.introspected[canaries["reader token"]] = {"active": True, "scope": f"openid {SCOPE}"}
            actors = tmp_path / "actors.toml"
            hashes = {"token": hash_token(canaries["static token"]), "disabled": hash_token(canaries["disabled token"])}
            actors.write_text(ACTORS.format(**hashes))
            urls = {"upstream": f"http://127.0.0.1:{port}", "dotcom": sourcegraph.url, "sams": portal.url}
            environ = {
                **_build_environ(canaries, urls),
                "CODY_GATEWAY_DATA_DIR": str(folder),
                "CODY_GATEWAY_ACTORS_FILE": str(actors),
                "REDIS_ENDPOINT": f"unix://:{password}@{socket}",
                "CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_SLACK_WEBHOOK_URL": f"{slack_url}/{canaries['slack path']}",
                "CODY_GATEWAY_LOG_FORMAT": log_format,
                "CODY_GATEWAY_EVENTS_SINKS": "http",
                "CODY_GATEWAY_EVENTS_HTTP_URL": f"{receiver.url}/events",
                "CODY_GATEWAY_EVENTS_HTTP_SECRET": canaries["sink secret"],
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
                "OTEL_EXPORTER_OTLP_HEADERS": f"x-key={canaries['otlp header']}",
                "SENTRY_DSN": f"http://{canaries['sentry key']}@{receiver.url.removeprefix('http://')}/1",
                **more(canaries),
            }
            monitored = bytearray()
            async with (
                _monitor(redis, password, monitored),
                open_gateway_process(environ, tmp_path / "log", script=CRASHING) as gateway,
            ):
                bench = CanaryBench(
                    gateway, canaries, environ, upstream, sourcegraph, portal, receiver, redis, folder, monitored
                )
                yield bench


def _build_environ(canaries: Canaries, urls: dict[str, str]) -> dict[str, str]:
    upstream = urls["upstream"]
    compatible = "CODY_GATEWAY_OPENAI_COMPATIBLE_MY_SERVER_"
    return {
        "PORT": "0",
        "CODY_GATEWAY_LOG_LEVEL": "DEBUG",
        "CODY_GATEWAY_DIAGNOSTICS_SECRET": canaries["diagnostics secret"],
        "CODY_GATEWAY_ANTHROPIC_API_URL": upstream,
        "CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN": canaries["anthropic key"],
        "CODY_GATEWAY_OPENAI_API_URL": upstream,
        "CODY_GATEWAY_OPENAI_ACCESS_TOKEN": canaries["openai key"],
        "CODY_GATEWAY_FIREWORKS_API_URL": f"{upstream}/inference",
        "CODY_GATEWAY_FIREWORKS_ACCESS_TOKEN": canaries["fireworks key"],
        "CODY_GATEWAY_GOOGLE_API_URL": upstream,
        "CODY_GATEWAY_GOOGLE_ACCESS_TOKEN": canaries["google key"],
        f"{compatible}API_URL": f"{upstream}/v1",
        f"{compatible}ACCESS_TOKEN": canaries["compatible key"],
        f"{compatible}ALLOWED_MODELS": "org/*",
        "CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_URL": f"{upstream}/infer",
        "CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_TOKEN": canaries["embeddings token"],
        "CODY_GATEWAY_DOTCOM_API_URL": urls["dotcom"],
        "CODY_GATEWAY_DOTCOM_ACCESS_TOKEN": canaries["dotcom token"],
        "CODY_GATEWAY_ENABLE_ATTRIBUTION_SEARCH": "true",
        "CODY_GATEWAY_ENTERPRISE_PORTAL_URL": urls["sams"],
        "CODY_GATEWAY_SOURCES_SYNC_INTERVAL": "1s",
        "SAMS_URL": urls["sams"],
        "SAMS_CLIENT_ID": CLIENT_ID,
        "SAMS_CLIENT_SECRET": canaries["sams secret"],
        "CODY_GATEWAY_ANTHROPIC_BLOCKED_PROMPT_PATTERNS": canaries["flagged prompt"][:24],
        "CODY_GATEWAY_ANTHROPIC_REQUEST_BLOCKING_ENABLED": "true",
        "CODY_GATEWAY_SHED_TARGET": "0",
        "CODY_GATEWAY_MODEL_UNAVAILABLE_AFTER": "0",
    }
