"""``cgw token derive`` and ``hash``, as a user runs them."""

from __future__ import annotations

import hashlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import cgw

ROOT = Path(cgw.__file__).parent.parent
PAYLOAD = "0123456789abcdef0123456789abcdef01234567"
DERIVED = "sgd_ee6ba2aa505be17522e936ebac2c31c108d58ebfc8d483ed75a6b298506cb949"
TIMEOUT_SECONDS = 30


def build_environ() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def run_token(*arguments: str, secret: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run ``cgw token`` with ``secret`` on standard input."""
    command = [sys.executable, "-m", "cgw", "token", *arguments]
    return subprocess.run(
        command, env=build_environ(), input=secret, capture_output=True, timeout=TIMEOUT_SECONDS, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "secret", "expected"),
    [
        (("derive", "--from", "access-token"), f"sgp_{PAYLOAD}\n", DERIVED),
        (("derive", "--from", "stored-hash"), hashlib.sha256(bytes.fromhex(PAYLOAD)).hexdigest(), DERIVED),
        (("derive", "--from", "licence-key"), "  key \nmore", "slk_" + hashlib.sha256(b"key").hexdigest()),
        (("hash",), "cgw_token\r\n", hashlib.sha256(b"cgw_token").hexdigest()),
    ],
)
def test_a_secret_from_a_pipe_gives_one_line(arguments: tuple[str, ...], secret: str, expected: str) -> None:
    """The first line counts, without blanks around it; the result can be piped on."""
    completed = run_token(*arguments, secret=secret.encode())
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, f"{expected}\n".encode(), b"")


@pytest.mark.parametrize(
    ("arguments", "secret"),
    [
        (("derive",), b"sgp_CANARY"),
        (("derive", "--from", "access-token"), b"sgp_CANARY"),
        (("derive", "--from", "stored-hash"), b"CANARY"),
        (("derive", "--from", "licence-key"), b" \n"),
        (("hash",), b""),
        (("hash", "CANARY"), b""),
        (("derive", "--from", "licence-key", "CANARY"), b""),
        (("check", "CANARY"), b""),
    ],
)
def test_a_wrong_or_missing_secret_exits_with_2_and_is_not_repeated(arguments: tuple[str, ...], secret: bytes) -> None:
    """Nothing is printed on standard output, and no error has what was pasted."""
    completed = run_token(*arguments, secret=secret)
    assert (completed.returncode, completed.stdout) == (2, b"")
    assert b"Error: " in completed.stderr
    assert b"CANARY" not in completed.stderr


def test_on_a_terminal_the_secret_is_asked_for_without_echo() -> None:
    """What is typed is not shown, and the question goes to standard error."""
    terminal, end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "cgw", "token", "hash"],
        env=build_environ(),
        stdin=end,
        stdout=subprocess.PIPE,
        stderr=end,
        start_new_session=True,
    ) as process:
        os.close(end)
        shown = b""
        while b"Token: " not in shown:
            shown += os.read(terminal, 1000)
        os.write(terminal, b"CANARY\n")
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        try:
            while data := os.read(terminal, 1000):
                shown += data
        except OSError:
            pass  # the other end is closed
        os.close(terminal)
    assert output.decode().strip() == hashlib.sha256(b"CANARY").hexdigest()
    assert b"CANARY" not in shown
