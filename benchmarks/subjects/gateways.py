"""Other LLM gateways, installed from package registries: LiteLLM's proxy and Portkey's gateway."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from attrs import frozen

from benchmarks.binaries import cache_dir
from benchmarks.subjects.base import Address, MissingSubjectError, Start, ask_version
from benchmarks.subjects.proxies import find_program
from benchmarks.tool_processes import Target

__all__ = ["LiteLLM", "Portkey"]

LITELLM_KEY = "sk-benchmarks"
LITELLM = """\
model_list:
  - model_name: gpt-4o
    litellm_params: {{model: openai/gpt-4o, api_base: "{url}/v1", api_key: sk-benchmarks}}
  - model_name: claude-3-haiku-20240307
    litellm_params: {{model: anthropic/claude-3-haiku-20240307, api_base: "{url}", api_key: sk-benchmarks}}
general_settings:
  master_key: {key}
  pass_through_endpoints:
    - path: "/raw"
      target: "{url}/v1/chat/completions"
      headers: {{authorization: "Bearer sk-benchmarks"}}
      auth: false
litellm_settings:
  telemetry: false
  num_retries: 0
"""
LITELLM_ROUTES = {
    "litellm": Target(0, "/v1/chat/completions", model="gpt-4o"),
    "litellm-messages": Target(0, "/v1/messages", model="claude-3-haiku-20240307"),
    "litellm-raw": Target(0, "/raw", model="gpt-4o"),
}


@frozen
class LiteLLM:
    """One worker, no database, a master key. ``name`` selects the route: OpenAI's API, Anthropic's, or pass-through."""

    name: str = "litellm"
    start_seconds: float = 90.0
    has_tls: bool = False
    has_http2: bool = False

    def version(self) -> str:
        python = Path(self._program()).with_name("python")
        found = ask_version([str(python), "-c", "from importlib.metadata import version; print(version('litellm'))"])
        return f"litellm {found}"

    def prepare(self, directory: Path, port: int, upstream: Address) -> Start:
        file = directory / "config.yaml"
        file.write_text(LITELLM.format(url=upstream.url, key=LITELLM_KEY))
        route = LITELLM_ROUTES[self.name]
        return Start(
            command=(
                *(self._program(), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)),
                *("--num_workers", "1", "--telemetry", "False"),
            ),
            cwd=directory,
            environ={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"},
            target=Target(port, route.path, (f"authorization: Bearer {LITELLM_KEY}",), route.model),
        )

    def _program(self) -> str:
        where = os.environ.get("CGW_BENCH_LITELLM") or cache_dir() / "litellm"
        installed = Path(where).expanduser() / "bin" / "litellm"
        found = str(installed) if installed.exists() else shutil.which("litellm")
        if found is None:
            raise MissingSubjectError(
                f"neither {installed} nor `litellm` on PATH exists; benchmarks/README.md has the install"
            )
        return found


@frozen
class Portkey:
    """The gateway for Node.js. Headers of each request name the provider's address."""

    name: str = "portkey"
    start_seconds: float = 30.0
    has_tls: bool = False
    has_http2: bool = False

    def version(self) -> str:
        found = json.loads((self._package() / "package.json").read_text())["version"]
        return f"@portkey-ai/gateway {found}, Node.js {ask_version([find_program('node'), '--version'])}"

    def prepare(self, directory: Path, port: int, upstream: Address) -> Start:
        headers = (
            "authorization: Bearer sk-benchmarks",
            "x-portkey-provider: openai",
            f"x-portkey-custom-host: {upstream.url}/v1",
        )
        return Start(
            command=(
                *(find_program("node"), str(self._package() / "build" / "start-server.js")),
                *(f"--port={port}", "--headless"),
            ),
            cwd=directory,
            environ={"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"},
            target=Target(port, headers=headers),
        )

    def _package(self) -> Path:
        where = os.environ.get("CGW_BENCH_PORTKEY") or cache_dir() / "portkey"
        package = Path(where).expanduser() / "node_modules" / "@portkey-ai" / "gateway"
        if not (package / "package.json").exists():
            raise MissingSubjectError(f"{package} does not exist; benchmarks/README.md has the install")
        return package
