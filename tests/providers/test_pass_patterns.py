"""Patterns of pass routes, and which paths can match one at all."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.config.kinds import Secret
from cgw.errors import ConfigError
from cgw.providers.openai_compatible.settings import OpenAICompatibleSettings
from cgw.providers.pass_patterns import PASS_ROUTES, PassPattern, is_own, split_path
from cgw.providers.registry import build_dialects


@pytest.mark.parametrize(
    ("pattern", "method", "path", "matches"),
    [
        ("POST /v1/batches", b"POST", b"/v1/batches", True),
        ("POST /v1/batches", b"GET", b"/v1/batches", False),
        ("/v1/batches", b"DELETE", b"/v1/batches", True),
        ("/v1/batches", b"HEAD", b"/v1/batches", False),
        ("/v1/batches", b"CONNECT", b"/v1/batches", False),
        ("/v1/batches", b"POST", b"/v1/batches/a", False),
        ("/v1/files/*", b"GET", b"/v1/files", False),
        ("/v1/files/*", b"GET", b"/v1/files/a", True),
        ("/v1/files/*", b"GET", b"/v1/files/a/content", True),
        ("/v1/files/*/content", b"GET", b"/v1/files/a/content", True),
        ("/v1/files/*/content", b"GET", b"/v1/files/a/b/content", False),
        ("/v1/files/*", b"GET", b"/v2/files/a", False),
        ("/v1/files/*", b"GET", b"/v1/filesx/a", False),
    ],
)
def test_patterns(pattern: str, method: bytes, path: bytes, matches: bool) -> None:
    """A star is one segment, or the rest at the end; without a method all but HEAD and the like match."""
    segments = split_path(path)
    assert segments is not None
    assert PassPattern.parse(pattern).matches(method, segments) is matches


def test_the_setting_is_a_list() -> None:
    """Patterns are separated by commas, and shown as they are written."""
    patterns = PASS_ROUTES.parse("POST  /v1/batches,/v1/files/*, ")
    assert PASS_ROUTES.show(patterns) == "POST /v1/batches, /v1/files/*"
    assert PASS_ROUTES.parse(PASS_ROUTES.show(patterns)) == patterns


@pytest.mark.parametrize(
    "text",
    [",", "v1/files", "/", "/*", "/v1//files", "/v1/../x", "/v1/fi*", "get /v1/x", "HEAD /v1/x", "/v1/a b", "/v1/%2e"],
)
def test_wrong_patterns_are_refused(text: str) -> None:
    """What would pass too much, or nothing, is an error of the configuration."""
    with pytest.raises(ValueError, match=r"^must "):
        PASS_ROUTES.parse(text)


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/files/../chat/completions",
        b"/v1/files/%2e%2e/x",
        b"/v1/files/.%2E/x",
        b"/v1/files/./x",
        b"/v1//files",
        b"/v1/files/",
        b"/v1/files%2Fx",
        b"/v1/files%5cx",
        b"/v1/files\\x",
        b"/v1/files/%252e%252e",
        b"/v1/files/%00",
        b"/v1/files/%0d%0aa:b",
        b"/v1/files/%3Fa",
        b"/v1/files/%zz",
        b"/v1/files/;a#b",
        b"/v1/files/..;/x",
        b"/v1/files/..%3Ba=b/x",
        b"/v1/files/a;b",
        b"/v1/files/%c0%ae%c0%ae/x",
        b"/v1/files/%e2%80%a4./x",
        "/v1/files/é".encode(),
        b"",
        b"/",
    ],
)
def test_paths_that_servers_read_differently_do_not_pass(path: bytes) -> None:
    """Dot segments, encoded slashes, doubled escapes: no path that an upstream could resolve to another one."""
    assert split_path(path) is None


@given(
    st.lists(st.sampled_from([b"v1", b"files", b"..", b".", b"%2e", b"%2F", b"/", b"a", b"%41", b"\\", b"%25", b""]))
)
def test_what_passes_stays_what_it_is(parts: list[bytes]) -> None:
    """However a path is composed, one that passes has as many segments for every server, and no dots."""
    segments = split_path(b"/" + b"/".join(parts))
    if segments is not None:
        decoded = unquote_to_bytes(b"/".join(segments)).split(b"/")
        assert len(decoded) == len(segments)
        assert not {b"", b".", b".."} & set(decoded)


def test_a_compatible_server_has_its_prefix_already() -> None:
    """The base URL of a compatible server ends with /v1, so all of its patterns must begin with it."""
    settings = OpenAICompatibleSettings(
        api_url="http://x/v1", access_token=Secret("k"), allowed_models=("a",), pass_routes=PASS_ROUTES.parse("/v2/x")
    )
    with pytest.raises(ConfigError, match=r"^CODY_GATEWAY_OPENAI_COMPATIBLE_MY_SERVER_PASS_ROUTES: .*/v1"):
        build_dialects({"my-server": settings})


@pytest.mark.parametrize(
    ("path", "own"),
    [
        (b"v1/models", True),
        (b"v1/models/gpt-4o", True),
        (b"v1/model%73", True),
        (b"v1/Models", True),
        (b"V1/RESPONSES/resp_1", True),
        (b"v1/responses/resp_1/input_items", True),
        (b"v1beta/models/gemini-a", True),
        (b"v1beta/models/veo-3:predictLongRunning", False),
        (b"v1/files/models", False),
        (b"v1/modelsx", False),
    ],
)
def test_what_cgw_answers_itself_does_not_pass(path: bytes, own: bool) -> None:
    """Lists of models, and responses that belong to an actor, stay cgw's, whatever the patterns."""
    assert is_own(path.split(b"/")) is own
