"""``/-/log-level``: the level of the log, for whoever has the diagnostics secret."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from cgw.service.lifecycle import Service
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.support.gateway import TOKEN, open_gateway
from tests.support.waiting import wait_until

PATH = "/-/log-level"
SECRET = "secret-of-the-operators"


@pytest.fixture(autouse=True)
def info_level() -> Iterator[None]:
    """The configured level is INFO; the former one is restored."""
    root = logging.getLogger()
    former = root.level
    root.setLevel(logging.INFO)
    yield
    root.setLevel(former)


@pytest.fixture
async def gateway(info_level: None, tmp_path: Path, upstream: ScriptedUpstream) -> AsyncIterator[Service]:
    """A gateway with a diagnostics secret."""
    async with open_gateway(tmp_path, upstream.url, more={"CODY_GATEWAY_DIAGNOSTICS_SECRET": SECRET}) as service:
        yield service


@pytest.fixture
async def client(gateway: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client that presents the secret."""
    async with httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {SECRET}"}) as opened:
        yield opened


async def test_it_shows_and_changes_the_level(client: httpx.AsyncClient) -> None:
    """GET shows the level; POST changes it, by the query or a form, in any case, and shows it."""
    assert (await client.get(PATH)).json() == {"level": "INFO", "configured": "INFO"}
    assert (await client.post(PATH, data={"level": "debug"})).json() == {"level": "DEBUG", "configured": "INFO"}
    assert logging.getLogger().level == logging.DEBUG
    assert (await client.get(PATH)).json()["level"] == "DEBUG"
    assert (await client.post(PATH, params={"level": "WARNING"})).json()["level"] == "WARNING"
    both = await client.post(PATH, params={"level": "ERROR"}, content=b"seconds=60\n")
    assert both.json()["level"] == "ERROR"
    assert 50 < both.json()["seconds_left"] <= 60
    assert (await client.get(PATH)).json()["seconds_left"] <= 60


async def test_a_level_with_seconds_ends(client: httpx.AsyncClient) -> None:
    """After its seconds the configured level is back."""
    await client.post(PATH, data={"level": "DEBUG", "seconds": "0.05"})
    await wait_until(lambda: logging.getLogger().level == logging.INFO)
    assert (await client.get(PATH)).json() == {"level": "INFO", "configured": "INFO"}


@pytest.mark.parametrize(
    ("query", "body", "problem"),
    [
        ("", b"", "level is missing: set it to DEBUG, INFO, WARNING or ERROR"),
        ("seconds=5", b"", "level is missing"),
        ("level=LOUD", b"", "level is 'LOUD', and must be DEBUG, INFO, WARNING or ERROR"),
        ("level=", b"", "level is ''"),
        ("level=DEBUG&second=5", b"", "'second' is not a parameter"),
        ("level=DEBUG", b"level=INFO", "once each"),
        ("level=DEBUG&level=INFO", b"", "once each"),
        ("", b'{"level": "DEBUG"}', "the body must be a form: level=DEBUG&seconds=600"),
        ("DEBUG", b"", "the query must be a form"),
        ("", b"level=\xff", "the body must be a form"),
        ("", b"&".join(b"a=b" for _ in range(20)), "the body must be a form"),
        ("level=DEBUG&seconds=0", b"", "seconds is '0'"),
        ("level=DEBUG&seconds=-1", b"", "seconds is '-1'"),
        ("level=DEBUG&seconds=nan", b"", "seconds is 'nan'"),
        ("level=DEBUG&seconds=inf", b"", "seconds is 'inf'"),
        ("level=DEBUG&seconds=10m", b"", "seconds is '10m', and must be a number above 0, at most 604800"),
        ("level=DEBUG&seconds=604801", b"", "seconds is '604801'"),
    ],
)
async def test_a_wrong_change_is_explained(client: httpx.AsyncClient, query: str, body: bytes, problem: str) -> None:
    """400 says what is wrong, and the level stays."""
    answer = await client.post(f"{PATH}?{query}", content=body)
    assert answer.status_code == 400
    assert problem in answer.json()["error"]
    assert logging.getLogger().level == logging.INFO


async def test_a_large_body_is_refused(client: httpx.AsyncClient) -> None:
    """A body that is no change of a level is not read."""
    assert (await client.post(PATH, content=b"x" * 2000)).status_code == 413


@pytest.mark.parametrize("authorization", [{}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {TOKEN}"}])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_only_the_secret_opens_it(gateway: Service, method: str, authorization: dict[str, str]) -> None:
    """Without the secret, or with a caller's token: 401, and nothing changes."""
    async with httpx.AsyncClient(base_url=gateway.url, headers=authorization) as stranger:
        assert (await stranger.request(method, f"{PATH}?level=DEBUG")).status_code == 401
    assert logging.getLogger().level == logging.INFO


async def test_other_methods(client: httpx.AsyncClient) -> None:
    """405 lists GET, HEAD and POST."""
    answer = await client.delete(PATH)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


async def test_without_a_secret_it_is_closed(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Where no secret is set the route names the setting, and changes nothing."""
    async with open_gateway(tmp_path, upstream.url) as service, httpx.AsyncClient(base_url=service.url) as client:
        answer = await client.post(PATH, data={"level": "DEBUG"})
    assert answer.status_code == 403
    assert "CODY_GATEWAY_DIAGNOSTICS_SECRET" in answer.json()["error"]
