"""The scripted upstream, and ``cgw serve`` in front of it, with an actor of its own for each scenario."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio
from attrs import frozen

from cgw.actors.tokens import hash_token
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream, SeenRequest, open_scripted_upstream
from compat.outside import Outside, open_outside
from compat.recorded import LOG_NAME
from compat.registry import MODELS

PROVIDER_KEY = "key-of-the-provider"
WRONG_TOKEN = "cgw_compat-unknown"
SPENT = "spent"
"""The actor whose quota is used up."""
ANSWER = "Good day to you, and to all of yours."
START_SECONDS = 60.0
STOP_SECONDS = 15.0
"""The time that cgw has to end; afterwards it is killed."""

_SERVING = re.compile(r"is serving on (http://127\.0\.0\.1:\d+)")
_ACTOR = """
[[actor]]
id = "{id}"
token_sha256 = ["{token}"]
[actor.limits.chat_completions]
limit = {limit}
interval = "24h"
concurrent_requests = 1000
"""
_REPORTED = {
    "input": re.compile(rb'"(?:prompt_tokens|input_tokens|promptTokenCount)": ?(\d+)'),
    "output": re.compile(rb'"(?:completion_tokens|output_tokens|candidatesTokenCount)": ?(\d+)'),
}


@frozen
class Bench:
    """A running gateway at ``url``, its upstream, its event log, and the proxy that leads nowhere."""

    url: str
    upstream: ScriptedUpstream
    folder: Path
    outside: Outside

    def play(self, **more: object) -> None:
        """Have the upstream answer so from now on."""
        self.upstream.scripts["*"] = build_script(**more)


def build_script(**more: object) -> Script:
    """Return a script that answers at once, but for ``more``."""
    fields = {"answer": ANSWER, "tokens_per_second": math.inf, "api_key": PROVIDER_KEY, **more}
    return Script(**fields)  # type: ignore[arg-type]


def build_token(actor: str) -> str:
    """Return the token of an actor."""
    return f"cgw_compat-{actor}"


def read_reported(requests: Sequence[SeenRequest]) -> tuple[int, int]:
    """Return the tokens in and out that the upstream's answers to ``requests`` report, from the answers' bytes."""
    sums = {"input": 0, "output": 0}
    for request in requests:
        if request.answer is None or request.answer.status != 200:
            continue
        body = b"".join(piece.data for piece in request.answer.pieces)
        for name, pattern in _REPORTED.items():
            # A stream's last figure is that of the whole.
            found = pattern.findall(body)
            sums[name] += int(found[-1]) if found else 0
    return sums["input"], sums["output"]


@asynccontextmanager
async def open_bench(folder: Path, actors: Sequence[str]) -> AsyncIterator[Bench]:
    """Run both while the block runs; files are in ``folder``, which must be empty."""
    limits = {**dict.fromkeys(actors, 1_000_000), SPENT: 1}
    actors_file = folder / "actors.toml"
    entries = (_ACTOR.format(id=id_, token=hash_token(build_token(id_)), limit=limit) for id_, limit in limits.items())
    actors_file.write_text("".join(entries), "utf-8")
    async with open_scripted_upstream(build_script()) as upstream, open_outside() as outside:
        environ = {"PORT": "0", "CODY_GATEWAY_DATA_DIR": str(folder), "CODY_GATEWAY_ACTORS_FILE": str(actors_file)}
        # Faults are played one after the other, and must not add up.
        environ |= {"CODY_GATEWAY_MODEL_UNAVAILABLE_AFTER": "0"}
        for provider in ("ANTHROPIC", "OPENAI", "GOOGLE"):
            environ[f"CODY_GATEWAY_{provider}_API_URL"] = upstream.url
            environ[f"CODY_GATEWAY_{provider}_ACCESS_TOKEN"] = PROVIDER_KEY
        log_path = folder / LOG_NAME
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
        with log_path.open("wb") as log:
            command = [sys.executable, "-m", "cgw", "serve"]
            process = await trio.lowlevel.open_process(
                command, env={**inherited, **environ}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            url = await _wait_serving(process, log_path)
            await _spend(url)
            yield Bench(url, upstream, folder, outside)
        finally:
            process.terminate()
            with trio.CancelScope(shield=True):
                with trio.move_on_after(STOP_SECONDS):
                    await process.wait()
                process.kill()  # does nothing where it has ended
                await process.wait()


async def _wait_serving(process: trio.Process, log_path: Path) -> str:
    log = trio.Path(log_path)
    with trio.fail_after(START_SECONDS):
        while (found := _SERVING.search(await log.read_text("utf-8"))) is None:
            if process.poll() is not None:
                raise RuntimeError(f"cgw ended at once: {await log.read_text('utf-8')}")
            await trio.sleep(0.05)
    return found[1]


async def _spend(url: str) -> None:
    """Use the quota of the actor that has only one request."""
    body = {"model": MODELS["openai"], "messages": [{"role": "user", "content": "x"}]}
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {build_token(SPENT)}"}) as client:
        answer = await client.post(f"{url}/openai/v1/chat/completions", json=body, timeout=60)
        answer.raise_for_status()
