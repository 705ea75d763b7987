"""The command line, as a user runs it: in a process with an environment of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

import cgw
from cgw.actors.static import load_static_actors
from cgw.cli.serve import FIRST_SETTINGS
from cgw.config.describe import describe_settings
from cgw.events.event_log import open_event_log
from cgw.events.records import completions_finished
from cgw.model import Actor, Feature, Usage, UsageQuality
from cgw.service.settings import Settings
from tests.cli.conftest import COMMAND, ROOT, TIMEOUT_SECONDS, RunCgw


def test_help_names_every_command_and_the_exit_statuses(run_cgw: RunCgw) -> None:
    """``cgw --help`` lists every command and explains the exit statuses."""
    completed = run_cgw("--help")
    assert completed.returncode == 0
    for command in ("serve", "demo", "usage", "limits", "check", "config", "token", "Exit status"):
        assert command in completed.stdout


def test_help_is_quick(run_cgw: RunCgw) -> None:
    """``cgw --help`` takes under 0.3 s of processor time, which depends less on the machine's load than real time."""

    def measure() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_cgw("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(measure() for _ in range(3)) < 0.3


def test_help_imports_no_slow_packages() -> None:
    """Packages that are slow to import are imported by the commands that use them."""
    code = "import sys, cgw.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"trio", "h11", "hypercorn", "httpx", "redis", "attrs", "cattrs", "msgspec", "rich", "ssl", "sqlite3"}
    assert heavy.isdisjoint(loaded.stdout.split())


def test_the_version_is_printed(run_cgw: RunCgw) -> None:
    """``cgw --version`` prints the package's version."""
    assert run_cgw("--version").stdout == f"cgw {cgw.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["serve", "--nonsense"],
        ["usage", "--since", "yesterday"],
        ["usage", "--until", "20261125"],
        ["usage", "--since", "7h"],
        ["usage", "--since", "999999w"],
        ["usage", "--by", "month"],
        ["usage", "--by", "day,"],
        ["usage", "--json", "--csv"],
        ["usage", "--since", "2026-11-25", "--until", "2026-11-24"],
        ["token", "new"],
        ["token", "new", "--id", "a b"],
        ["token", "new", "--id", "a", "--name", "a\nb"],
        ["demo", "--port", "65536"],
    ],
)
def test_a_wrong_command_line_exits_with_2(run_cgw: RunCgw, arguments: list[str]) -> None:
    """The reason is on standard error, and standard output stays empty."""
    completed = run_cgw(*arguments)
    assert (completed.returncode, completed.stdout) == (2, "")
    assert "Error: " in completed.stderr


def test_dates_say_their_form(run_cgw: RunCgw) -> None:
    """The help and the error show how a day is written, and bounds in the wrong order are named with both days."""
    assert "--since YYYY-MM-DD" in run_cgw("usage", "--help").stdout
    error = run_cgw("usage", "--since", "yesterday").stderr
    assert "as YYYY-MM-DD, such as 2026-11-25, or so many days or weeks ago, such as 7d or 2w, not 'yesterday'" in error
    completed = run_cgw("usage", "--since", "2026-11-25", "--until", "2026-11-24")
    assert "--since 2026-11-25 is after --until 2026-11-24" in completed.stderr


@pytest.mark.parametrize("command", ["config", "usage"])
def test_wrong_settings_exit_with_1_and_all_problems(run_cgw: RunCgw, command: str) -> None:
    """Each problem is one line on standard error with its variable's name, behind the warnings; nothing else."""
    completed = run_cgw(command, PORT="x", CODY_GATEWAY_LOG_FORMAT="xml", CODY_GATEWAY_PORT="80")
    assert (completed.returncode, completed.stdout) == (1, "")
    assert completed.stderr.splitlines() == [
        "cgw: warning: CODY_GATEWAY_PORT: is not read by cgw: set PORT instead",
        "cgw: PORT: must be a whole number, from 0 to 65535, not 'x': correct or unset it (default: 9992)",
        "cgw: CODY_GATEWAY_LOG_FORMAT: must be one of auto, text, json, not 'xml': correct or unset it (default: auto)",
    ]


def test_config_lists_every_setting_with_secrets_masked(run_cgw: RunCgw) -> None:
    """Each setting has a line with its effective value; a warning about an unknown name goes to standard error."""
    completed = run_cgw("config", CODY_GATEWAY_OPENAI_ACCESS_TOKEN="CANARY", PORT="8080", CODY_GATEWAY_PROT="1")
    assert completed.returncode == 0
    lines = {line.split()[0]: line for line in completed.stdout.splitlines()}
    assert {row.name for row in describe_settings(Settings())} <= lines.keys()
    assert re.match(r"PORT +8080 +9992 +The port", lines["PORT"])
    assert re.match(r"CODY_GATEWAY_OPENAI_ACCESS_TOKEN +\*{4} ", lines["CODY_GATEWAY_OPENAI_ACCESS_TOKEN"])
    assert "CANARY" not in completed.stdout + completed.stderr
    assert "\x1b" not in completed.stdout
    assert completed.stderr.startswith("cgw: warning: CODY_GATEWAY_PROT: is not a setting")


def test_config_as_json_and_only_what_is_changed(run_cgw: RunCgw) -> None:
    """``--json`` is a list of all settings, ``--changed`` leaves out the defaults; secrets are masked in both."""
    variables = {"CODY_GATEWAY_OPENAI_ACCESS_TOKEN": "CANARY", "PORT": "8080", "CODY_GATEWAY_HOST": "127.0.0.1"}
    rows = json.loads(run_cgw("config", "--json", **variables).stdout)
    assert [row["name"] for row in rows] == [row.name for row in describe_settings(Settings())]
    completed = run_cgw("config", "--json", "--changed", **variables)
    changed = {row["name"]: (row["value"], row["default"]) for row in json.loads(completed.stdout)}
    assert changed == {"PORT": ("8080", "9992"), "CODY_GATEWAY_OPENAI_ACCESS_TOKEN": ("****", "(not set)")}
    assert "CANARY" not in completed.stdout
    table = run_cgw("config", "--changed", **variables).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["setting", "PORT", "CODY_GATEWAY_OPENAI_ACCESS_TOKEN"]
    assert json.loads(run_cgw("config", "--json", "--changed").stdout) == []


def test_config_wraps_by_words_on_a_terminal(environ: dict[str, str]) -> None:
    """On a narrow terminal no word of a setting's meaning is broken, and no line is wider."""
    controller, terminal = os.openpty()
    environ |= {"COLUMNS": "60", "TERM": "dumb"}
    with subprocess.Popen([*COMMAND, "config"], env=environ, stdout=terminal, stderr=subprocess.DEVNULL) as process:
        os.close(terminal)
        output = b""
        with contextlib.suppress(OSError):  # EIO is the end of a terminal
            while data := os.read(controller, 65536):
                output += data
    os.close(controller)
    assert process.returncode == 0
    meanings = [line for line in output.decode().splitlines() if line.startswith("    ")]
    assert max(map(len, meanings)) <= 60
    words = " ".join(" ".join(meanings).split())
    assert all(row.help in words for row in describe_settings(Settings()))


def test_serve_help_names_the_settings_to_begin_with(run_cgw: RunCgw) -> None:
    """``cgw serve --help`` has ten settings, each with its meaning."""
    completed = run_cgw("serve", "--help")
    rows = {row.name: row for row in describe_settings(Settings())}
    assert len(FIRST_SETTINGS) == 10
    text = " ".join(completed.stdout.split())
    for name in FIRST_SETTINGS:
        assert rows[name].help.split()[0] in text
        assert name in completed.stdout
    assert "--env-file FILE" in completed.stdout


def test_an_env_file_is_read_beside_the_environment(run_cgw: RunCgw, tmp_path: Path) -> None:
    """Its variables are settings, the environment's own come first, and what is wrong with it is reported by line."""
    path = tmp_path / "cgw.env"
    path.write_text("# settings\nPORT=1\nCODY_GATEWAY_HOST='::'\n")
    completed = run_cgw("config", "--json", "--changed", "--env-file", str(path), PORT="2")
    assert {row["name"]: row["value"] for row in json.loads(completed.stdout)} == {
        "PORT": "2",
        "CODY_GATEWAY_HOST": "::",
    }
    path.write_text("PORT=x\n")
    completed = run_cgw("serve", "--env-file", str(path))
    assert (completed.returncode, completed.stdout) == (1, "")
    assert "cgw: PORT: must be a whole number" in completed.stderr
    path.write_text("PORT\nCANARY CANARY\n")
    completed = run_cgw("check", "--env-file", str(path))
    assert completed.returncode == 1
    assert completed.stderr.startswith(f"cgw: {path}:1: is not NAME=value")
    assert "CANARY" not in completed.stderr


async def test_a_new_token_works_with_its_entry(run_cgw: RunCgw, tmp_path: Path) -> None:
    """``cgw token new >> actors.toml`` works: the entry is all of standard output, the token is on standard error."""
    path = tmp_path / "actors.toml"
    tokens = {}
    for actor_id in ("acme", "other"):
        completed = run_cgw("token", "new", "--id", actor_id, "--name", "Acme Inc.")
        assert completed.returncode == 0
        (tokens[actor_id],) = re.findall(r"^cgw_[0-9a-f]{64}$", completed.stderr, re.MULTILINE)
        # As a shell would, and without the line break at the end that an editor may have left out.
        path.write_text((path.read_text().rstrip("\n") if path.exists() else "") + completed.stdout)
    source = load_static_actors(path, percentage=50, interval_ms=10_000)
    for actor_id, secret in tokens.items():
        actor = await source.get(secret)
        assert (actor.id, actor.name) == (actor_id, "Acme Inc.")
        assert secret not in path.read_text()


async def test_a_new_token_is_appended_to_a_file(run_cgw: RunCgw, tmp_path: Path) -> None:
    """With ``--append`` the token is all of standard output; an id that is there already changes nothing."""
    path = tmp_path / "actors.toml"
    completed = run_cgw("token", "new", "--id", "acme", "--append", str(path))
    assert completed.returncode == 0
    assert re.fullmatch(r"cgw_[0-9a-f]{64}\n", completed.stdout)
    assert completed.stdout.strip() not in completed.stderr
    source = load_static_actors(path, percentage=50, interval_ms=10_000)
    assert (await source.get(completed.stdout.strip())).id == "acme"
    before = path.read_bytes()
    completed = run_cgw("token", "new", "--id", "acme", "--append", str(path))
    assert (completed.returncode, completed.stdout) == (1, "")
    assert completed.stderr.startswith(f"cgw: {path}: actor[1].id: ")
    assert path.read_bytes() == before


async def record_completions(data_dir: Path, moments: Mapping[datetime, str]) -> None:
    """Record one completion for each moment, by the actor with that id, in the event log of ``data_dir``."""
    async with open_event_log(data_dir / "events") as event_log:
        for moment, actor_id in moments.items():
            event = completions_finished(
                Actor(id=actor_id, name="", source="static", access_enabled=True),
                feature=Feature.CHAT_COMPLETIONS,
                model="openai/gpt-4o",
                provider="openai",
                usage=Usage(prompt_token_count=3, completion_token_count=5, quality=UsageQuality.EXACT),
                resolved_status=200,
            )
            event_log.record(msgspec.structs.replace(event, created_at=moment))


async def test_usage_is_grouped_and_counted_back_in_days(run_cgw: RunCgw, tmp_path: Path) -> None:
    """``--by`` takes keys in any order, several at once; ``7d`` is the day seven days ago, and so for weeks."""
    noon = datetime.now(UTC)
    moments = {noon - timedelta(days=days, microseconds=days): f"acme-{days}" for days in (0, 7, 14, 15)}
    await record_completions(tmp_path, moments)
    option = f"--data-dir={tmp_path}"
    completed = run_cgw("usage", option, "--csv", "--by=actor", "--since=2w", "--until=1d")
    assert [line.split(",")[0] for line in completed.stdout.splitlines()] == ["actor", "acme-14", "acme-7"]
    completed = run_cgw("usage", option, "--json", "--by=provider,day", "--by=provider", "--since=0d")
    (row,) = json.loads(completed.stdout)
    assert list(row)[:3] == ["day", "provider", "requests"]
    assert (row["provider"], row["requests"]) == ("openai", 1)


async def test_an_empty_range_is_explained(run_cgw: RunCgw, tmp_path: Path) -> None:
    """Where nothing matches, standard error says what was asked for, and of which days there are events."""
    await record_completions(tmp_path, {datetime(2024, 5, day, tzinfo=UTC): "acme" for day in (1, 3)})
    option = f"--data-dir={tmp_path}"
    for choice, words in {
        ("--since=2024-05-04",): "since 2024-05-04",
        ("--since=2024-05-02", "--until=2024-05-02"): "since 2024-05-02 until 2024-05-02",
        ("--actor=initech",): "by the actor 'initech'",
    }.items():
        completed = run_cgw("usage", option, "--csv", *choice)
        assert (completed.returncode, len(completed.stdout.splitlines())) == (0, 1)
        assert completed.stderr == (
            f"no completions {words} are recorded in {tmp_path}/events: it has those of 2024-05-01 to 2024-05-03\n"
        )


async def test_usage_sums_up_recorded_completions(run_cgw: RunCgw, tmp_path: Path) -> None:
    """The data directory comes from the settings or from the option; days are inclusive, the actor's id exact."""
    day = datetime(2024, 5, 1, tzinfo=UTC)
    late = timedelta(hours=23, minutes=59)
    await record_completions(
        tmp_path, {day - timedelta(days=1): "acme", day: "acme", day + late: "other", day + timedelta(days=1): "acme"}
    )
    completed = run_cgw("usage", "--json", CODY_GATEWAY_DATA_DIR=str(tmp_path))
    assert (completed.returncode, completed.stderr) == (0, "")
    assert [(row["day"], row["actor"], row["requests"]) for row in json.loads(completed.stdout)] == [
        ("2024-04-30", "acme", 1),
        ("2024-05-01", "acme", 1),
        ("2024-05-01", "other", 1),
        ("2024-05-02", "acme", 1),
    ]
    option = f"--data-dir={tmp_path}"
    completed = run_cgw("usage", "--json", "--since=2024-05-01", "--until=2024-05-01", "--actor=other", option)
    assert [row["actor"] for row in json.loads(completed.stdout)] == ["other"]
    table = run_cgw("usage", option).stdout
    assert "2024-05-01" in table
    assert "openai/gpt-4o" in table


def test_usage_without_records_says_so(run_cgw: RunCgw, tmp_path: Path) -> None:
    """Without events the JSON list is empty, and standard error says so; neither is an error."""
    (tmp_path / "events").mkdir()
    option = f"--data-dir={tmp_path}"
    assert run_cgw("usage", "--json", option).stdout == "[]\n"
    completed = run_cgw("usage", option, "--until", "9999-12-31")
    assert completed.returncode == 0
    assert completed.stderr == f"no completions are recorded in {tmp_path}/events yet\n"


@pytest.mark.parametrize("kind", ["missing", "an empty folder", "a file", "a file instead of the events"])
@pytest.mark.parametrize("command", [["usage"], ["usage", "--json"], ["events", "import", "-"]])
def test_a_data_directory_that_is_none_is_reported_in_one_sentence(
    run_cgw: RunCgw, tmp_path: Path, kind: str, command: list[str]
) -> None:
    """A path that has no event log gives exit status 1 and no traceback, whether it is an option or a setting."""
    data_dir = tmp_path / "data"
    if kind == "a file":
        data_dir.write_text("")
    elif kind != "missing":
        data_dir.mkdir()
    if kind == "a file instead of the events":
        (data_dir / "events").write_text("")
    for completed in (
        run_cgw(*command, f"--data-dir={data_dir}"),
        run_cgw(*command, CODY_GATEWAY_DATA_DIR=str(data_dir)),
    ):
        assert (completed.returncode, completed.stdout) == (1, "")
        assert completed.stderr.startswith(f"cgw: {data_dir} is not a data directory of cgw")
        assert len(completed.stderr.splitlines()) == 1


def test_a_closed_pipe_ends_the_process_silently(environ: dict[str, str]) -> None:
    """In ``cgw config | head`` the process ends by SIGPIPE, as any filter, and prints nothing."""
    read_end, write_end = os.pipe()
    with subprocess.Popen([*COMMAND, "config"], env=environ, stdout=write_end, stderr=subprocess.PIPE) as process:
        os.close(write_end)
        os.close(read_end)
        _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert (process.returncode, errors) == (-signal.SIGPIPE, b"")


def wait_until_asleep(pid: int) -> None:
    """Return when the process waits in a system call, according to its state in ``proc(5)``."""
    give_up_at = time.monotonic() + TIMEOUT_SECONDS
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < give_up_at


def test_an_interrupt_exits_with_130_and_no_traceback(environ: dict[str, str]) -> None:
    """Ctrl-C ends ``cgw config`` while it waits for its reader, although output is left that was not read."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)  # less than the table has, so that the process has to wait
    process = subprocess.Popen([*COMMAND, "config"], env=environ, stdout=write_end, stderr=subprocess.PIPE)
    try:
        os.close(write_end)
        assert os.read(read_end, 1)
        wait_until_asleep(process.pid)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
        process.wait()
        os.close(read_end)
    assert (process.returncode, errors.strip()) == (130, b"")
