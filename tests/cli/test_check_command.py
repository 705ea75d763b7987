"""``cgw check``, and what ``cgw serve`` says of a configuration: exit statuses and streams of real processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

import cgw
from cgw.actors.tokens import build_entry
from cgw.providers.registry import PROVIDERS
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import open_scripted_upstream
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, build_environ
from tests.support.process import GatewayProcess, open_gateway_process, start_cgw, wait_ended
from tests.support.waiting import wait_until

ROOT = Path(cgw.__file__).parent.parent
LINE = re.compile(r"[A-Z][A-Z0-9_]*(, [A-Z][A-Z0-9_]*)*: \S.*: \S.*")

Completed = subprocess.CompletedProcess[str]


async def run_cgw(environ: Mapping[str, str], *arguments: str) -> Completed:
    """Run ``cgw`` to its end with nothing but ``environ``."""
    with trio.fail_after(60):
        completed = await trio.run_process(
            [sys.executable, "-m", "cgw", *arguments],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ},
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    return Completed(completed.args, completed.returncode, completed.stdout.decode(), completed.stderr.decode())


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """An environment in which everything is wrong that can be, except for the port."""
    actors = tmp_path / "actors.toml"
    actors.write_text('[[actor]]\nid = "a b"\n')
    (tmp_path / "data").write_text("a file")
    return {
        "HOME": str(tmp_path),
        "CODY_GATEWAY_LOG_FORMAT": "xml",
        "CODY_GATEWAY_ACTORS_FILE": str(actors),
        "CODY_GATEWAY_TLS_CERT_FILE": str(tmp_path / "cert.pem"),
        "CODY_GATEWAY_TLS_KEY_FILE": str(tmp_path / "key.pem"),
        "CODY_GATEWAY_DATA_DIR": str(tmp_path / "data"),
        "REDIS_ENDPOINT": "redis://:CANARY@127.0.0.1:1",
        "CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN": "CANARY",
        "CODY_GATEWAY_ANTHROPIC_API_URL": "https://127.0.0.1:1",
        "CODY_GATEWAY_OPENAI_ACCESS_TOKEN": "CANARY",
        "CODY_GATEWAY_OPENAI_API_URL": "http://127.0.0.1:1",
        "CODY_GATEWAY_PORT": "CANARY",
    }


def variables_of(lines: list[str]) -> list[str]:
    return sorted({line.partition(":")[0] for line in lines})


WRONG = [
    "CODY_GATEWAY_ACTORS_FILE",
    "CODY_GATEWAY_ANTHROPIC_API_URL",
    "CODY_GATEWAY_DATA_DIR",
    "CODY_GATEWAY_LOG_FORMAT",
    "CODY_GATEWAY_OPENAI_API_URL",
    "CODY_GATEWAY_TLS_CERT_FILE",
    "CODY_GATEWAY_TLS_KEY_FILE",
    "PORT",
    "REDIS_ENDPOINT",
]


async def test_check_finds_all_problems_at_once(broken: dict[str, str]) -> None:
    """Every problem is a line of its own, ``variable: what is wrong: what to do``; warnings are not lost."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        completed = await run_cgw({**broken, "PORT": str(server.getsockname()[1])}, "check")
    lines = completed.stdout.splitlines()
    assert completed.returncode == 1
    assert all(LINE.fullmatch(line) for line in lines)
    assert variables_of(lines) == WRONG
    assert completed.stderr.splitlines() == [
        "cgw: warning: CODY_GATEWAY_PORT: is not read by cgw: set PORT instead",
        f"cgw: {len(lines)} problems, 1 warning",
    ]
    assert "CANARY" not in completed.stdout + completed.stderr


@pytest.mark.parametrize("is_setting_wrong", [True, False], ids=["a wrong setting", "only what settings name"])
async def test_serve_reports_all_problems_before_it_listens(broken: dict[str, str], is_setting_wrong: bool) -> None:
    """A start that fails, whatever for, names all that is wrong, each thing once, and exits with 1."""
    if not is_setting_wrong:
        broken["CODY_GATEWAY_LOG_FORMAT"] = "text"
    with socket.create_server(("127.0.0.1", 0)) as server:
        completed = await run_cgw({**broken, "PORT": str(server.getsockname()[1])}, "serve")
    assert (completed.returncode, completed.stdout) == (1, "")
    lines = [line.removeprefix("cgw: ") for line in completed.stderr.splitlines() if line.startswith("cgw: ")]
    problems = [line for line in lines if not line.startswith("warning: ")]
    assert all(LINE.fullmatch(line) for line in problems)
    assert variables_of(problems) == [name for name in WRONG if is_setting_wrong or not name.endswith("LOG_FORMAT")]
    assert len(problems) == len(set(problems))
    assert "CODY_GATEWAY_PORT: is not read by cgw: set PORT instead" in completed.stderr
    assert "Traceback" not in completed.stderr
    assert "is serving on" not in completed.stderr
    assert "CANARY" not in completed.stderr


async def test_a_failed_start_does_not_lose_warnings(tmp_path: Path) -> None:
    """What is only worth a warning is said beside the problem that stopped the start."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        environ = {"PORT": str(server.getsockname()[1]), "CODY_GATEWAY_DATA_DIR": str(tmp_path / "data")}
        completed = await run_cgw(environ, "serve")
    assert completed.returncode == 1
    lines = [line for line in completed.stderr.splitlines() if line.startswith("cgw: ")]
    assert [line.split(": ")[1:3] for line in lines] == [
        ["warning", "CODY_GATEWAY_ACTORS_FILE"],
        ["warning", ", ".join(provider.access_token_variable for provider in PROVIDERS)],
        ["PORT", f"cannot listen on 127.0.0.1:{environ['PORT']}"],
    ]


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_checks_that_wait(tmp_path: Path, command: str, number: signal.Signals) -> None:
    """While a provider keeps the checks waiting, a signal ends the process at once, without a traceback."""
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as server:
        environ = {
            "PORT": "x",
            "CODY_GATEWAY_OPENAI_ACCESS_TOKEN": "key",
            "CODY_GATEWAY_OPENAI_API_URL": f"https://127.0.0.1:{server.getsockname()[1]}",
        }
        process = start_cgw(environ, log, command)
        with server.dup() as listener:
            connection, _ = await trio.to_thread.run_sync(listener.accept, abandon_on_cancel=True)
        with connection:
            process.send_signal(number)
            assert await wait_ended(process) == 130
    assert "Traceback" not in log.read_text()


async def test_check_of_a_good_configuration(tmp_path: Path) -> None:
    """Exit status 0, nothing on standard output, and nothing left behind; warnings do not change the status."""
    actors = tmp_path / "actors.toml"
    actors.write_text(build_entry("acme", "", "0" * 64))
    async with open_scripted_upstream({}) as upstream:
        environ = {
            "PORT": "0",
            "HOME": str(tmp_path),
            "CODY_GATEWAY_ACTORS_FILE": str(actors),
            "CODY_GATEWAY_DATA_DIR": str(tmp_path / "data"),
            "CODY_GATEWAY_OPENAI_ACCESS_TOKEN": "key",
            "CODY_GATEWAY_OPENAI_API_URL": upstream.url,
        }
        completed = await run_cgw(environ, "check")
        assert (completed.returncode, completed.stdout) == (0, "")
        assert completed.stderr == "cgw: 0 problems, 0 warnings\n"
        completed = await run_cgw({**environ, "CODY_GATEWAY_PROT": "1"}, "check")
        assert (completed.returncode, completed.stdout) == (0, "")
        assert completed.stderr.endswith("cgw: 0 problems, 1 warning\n")
        assert upstream.request_count == 0
    assert list(tmp_path.iterdir()) == [actors]


async def test_check_beside_the_running_gateway(tmp_path: Path) -> None:
    """With ``--running``, ports and data directory of the cgw that runs with the settings are no problems."""
    async with open_scripted_upstream({}) as upstream:
        environ = build_environ(tmp_path, upstream.url)
        async with open_gateway_process(environ, tmp_path / "log") as gateway:
            environ["PORT"] = str(gateway.port)
            completed = await run_cgw(environ, "check")
            assert completed.returncode == 1
            assert variables_of(completed.stdout.splitlines()) == ["CODY_GATEWAY_DATA_DIR", "PORT"]
            completed = await run_cgw(environ, "check", "--running")
            assert (completed.returncode, completed.stdout) == (0, "")


async def test_providers_that_are_away_do_not_stop_a_start(tmp_path: Path) -> None:
    """cgw serves, and says of each provider's host what is wrong and what to do, once; it can be ended meanwhile."""
    environ = build_environ(tmp_path, "http://127.0.0.1:1")
    async with open_gateway_process(environ, tmp_path / "log") as gateway:
        for name in ("ANTHROPIC", "OPENAI"):
            line = f"CODY_GATEWAY_{name}_API_URL: cannot connect to 127.0.0.1:1: Connection refused: "
            await wait_until(lambda line=line: line in gateway.log_path.read_text(), seconds=20)  # type: ignore[misc]
        gateway.terminate()
        assert await gateway.wait() == 0


async def test_a_provider_that_hangs_does_not_delay_start_or_end(tmp_path: Path) -> None:
    """While a TLS handshake with a provider gets no answer, cgw serves already, and SIGTERM ends it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        more = {"CODY_GATEWAY_UPSTREAM_CONNECT_TIMEOUT": "1h"}
        async with open_gateway_process(build_environ(tmp_path, url, more=more), tmp_path / "log") as gateway:
            gateway.terminate()
            assert await gateway.wait() == 0


async def wait_for_lines(gateway: GatewayProcess, *wanted: str) -> None:
    """Return when the log has each of ``wanted``."""
    await wait_until(lambda: all(line in gateway.log_path.read_text() for line in wanted), seconds=20)


async def test_the_start_is_logged(tmp_path: Path) -> None:
    """The log names version, address, providers with routes, actors, store and event log, and what is missing."""
    scripts = {ANTHROPIC_MODEL: Script(api_key=ANTHROPIC_KEY)}
    async with open_scripted_upstream(scripts) as upstream:
        more = {"CODY_GATEWAY_OPENAI_ACCESS_TOKEN": "", "CODY_GATEWAY_ALLOW_ANONYMOUS": "on"}
        environ = build_environ(tmp_path, upstream.url, more=more)
        async with open_gateway_process(environ, tmp_path / "log") as gateway:
            await wait_for_lines(
                gateway,
                f"cgw {cgw.__version__} is serving on {gateway.url}",
                f"provider anthropic at {upstream.url} serves POST /v1/completions/anthropic, ",
                "/anthropic/v1/messages",
                "provider openai has no routes: CODY_GATEWAY_OPENAI_ACCESS_TOKEN is not set",
                f"access is for 2 actors from {tmp_path}/actors.toml and callers without a token, as one actor",
                "limits are counted in the embedded store",
                f"usage events are kept in {tmp_path}/events",
            )
            assert ANTHROPIC_KEY not in gateway.log_path.read_text()


async def test_the_start_says_that_nobody_may_use_it(tmp_path: Path) -> None:
    """Without actors and providers' keys cgw serves, and the log says what is missing."""
    environ = {"PORT": "0", "CODY_GATEWAY_DATA_DIR": str(tmp_path / "data")}
    async with open_gateway_process(environ, tmp_path / "log") as gateway:
        await wait_for_lines(
            gateway,
            "nobody may use the gateway: set CODY_GATEWAY_ACTORS_FILE, CODY_GATEWAY_DOTCOM_ACCESS_TOKEN, ",
            "provider anthropic has no routes",
            "provider openai has no routes",
        )
