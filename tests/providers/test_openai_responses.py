"""OpenAI's Responses API: what a request refers to, what is refused, and figures behind long answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cgw.config.kinds import Secret
from cgw.errors import Refusal
from cgw.model import BodyWindow, Feature, UsageQuality
from cgw.providers.dialect import Caller, Dialect, PreparedRequest
from cgw.providers.openai.responses import MAX_REFERENCES
from cgw.providers.openai.responses_usage import list_ids
from cgw.providers.openai.settings import OpenAISettings
from cgw.providers.registry import build_dialects
from cgw.wire.messages import RequestHead, ResponseHead
from tests.support.golden_streams import RESPONSES

DIALECTS: dict[str, Dialect] = {
    dialect.path: dialect for dialect in build_dialects({"openai": OpenAISettings(access_token=Secret("k"))})
}
PATH = "/openai/v1/responses"
STREAM = ResponseHead(200, [(b"content-type", b"text/event-stream; charset=utf-8")])
WINDOW_BYTES = 32 * 1024


def prepare(body: dict[str, Any], path: str = PATH, feature: Feature = Feature.CHAT_COMPLETIONS) -> PreparedRequest:
    head = RequestHead(b"POST", path.encode(), [(b"openai-beta", b"responses=v1"), (b"openai-project", b"p")])
    return DIALECTS[path].prepare(head, json.dumps({"model": "gpt-5", **body}).encode(), Caller("acme:7", feature))


def test_the_request_is_complete() -> None:
    """Target, beta and figures of the request are there; no other header of the client's passes."""
    prepared = prepare({"input": "hello", "instructions": "be kind", "max_output_tokens": 7, "stream": True})
    assert prepared.upstream.target == b"/v1/responses"
    fields = dict(prepared.upstream.headers)
    assert (fields[b"openai-beta"], fields[b"accept"]) == (b"responses=v1", b"text/event-stream")
    assert b"openai-project" not in fields
    assert (prepared.prompt_character_count, prepared.max_completion_tokens) == (12, 7)
    assert prepared.is_stream


def test_the_prompts_text_is_counted_and_found() -> None:
    """Instructions, messages, calls and results of tools count; flagging reads the same messages."""
    items = [
        {"role": "user", "content": "a text"},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "parts"}, {"type": "input_image", "image_url": "u"}],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "said"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "result"},
        {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "code"},
        "nonsense",
    ]
    prepared = prepare({"instructions": "be kind", "input": items})
    assert prepared.prompt_character_count == len("be kind" + "a text" + "parts" + "said" + "{}" + "result" + "code")
    assert prepared.prompt is not None
    text = "".join(prepared.prompt.read_text())
    assert text.split("\n") == ["be kind", "a text", "parts", "said", "", "", "", ""]
    assert "result" in "".join(prepared.prompt.read_other_text())
    single = prepare({"input": "only this"}).prompt
    assert single is not None
    assert "".join(single.read_text()) == "only this\n"


@pytest.mark.parametrize(
    ("body", "references"),
    [
        ({"input": "x"}, ()),
        ({"previous_response_id": "resp_1"}, ("resp_1",)),
        ({"previous_response_id": None}, ()),
        ({"prompt_cache_options": {"comparison_response_id": "resp_2"}}, ("resp_2",)),
        ({"input": [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_2"}]}, ("msg_1", "msg_2")),
        ({"input": {"type": "item_reference", "id": "msg_1"}}, ("msg_1",)),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, ("rs_1",)),
        ({"input": [{"type": "reasoning", "id": "rs_1", "encrypted_content": "e"}]}, ()),
        ({"input": [{"type": "image_generation_call", "id": "ig_1"}]}, ("ig_1",)),
        ({"input": [{"type": "image_generation_call", "id": "ig_1", "result": "aGk="}]}, ()),
        ({"input": [{"type": "message", "id": "msg_1", "role": "assistant", "content": "x"}]}, ()),
        ({"input": [{"type": "function_call", "id": "fc_1", "call_id": "c", "arguments": "{}", "name": "f"}]}, ()),
        ({"previous_response_id": "a", "input": [{"type": "item_reference", "id": "a"}]}, ("a",)),
    ],
)
def test_references_are_listed(body: dict[str, Any], references: tuple[str, ...]) -> None:
    """What has no content of its own is looked up at the provider by its id, so it must be the caller's."""
    assert prepare({"input": "x", **body}).references == references


def test_many_references_are_refused() -> None:
    """They are looked up at once, so there is a bound."""
    items = [{"type": "item_reference", "id": f"msg_{number}"} for number in range(MAX_REFERENCES + 1)]
    assert len(prepare({"input": items[1:]}).references) == MAX_REFERENCES
    with pytest.raises(Refusal, match="at most 1000") as refused:
        prepare({"input": items})
    assert (refused.value.status, refused.value.param) == (400, "input")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"conversation": {}}, "conversation"),
    ],
)
def test_what_is_shared_or_cannot_be_charged_is_refused(body: dict[str, Any], field: str) -> None:
    """The refusal names the field and says why; their absence in any form is fine."""
    with pytest.raises(Refusal, match="not supported by this gateway") as refused:
        prepare({"input": "x", **body})
    assert (refused.value.param, refused.value.code) == (field, "unsupported_parameter")
    assert prepare({"input": "x", "background": False, "conversation": None}).model == "openai/gpt-5"


@pytest.mark.parametrize("path", [PATH, f"{PATH}/compact", f"{PATH}/input_tokens"])
def test_code_completions_are_refused(path: str) -> None:
    """As on the other routes to OpenAI."""
    with pytest.raises(Refusal, match="currently not supported for OpenAI"):
        prepare({"input": "x"}, path, Feature.CODE_COMPLETIONS)


@pytest.mark.parametrize("store", [True, False, None])
def test_only_what_is_stored_has_an_owner(store: bool | None) -> None:
    """OpenAI stores a response unless ``store`` is false."""
    assert (prepare({"input": "x", "store": store}).find_stored_ids is None) == (store is False)


def _stream(text_bytes: int, instruction_bytes: int) -> bytes:
    item = {"id": "msg_1", "type": "message", "content": [{"type": "output_text", "text": "x" * text_bytes}]}
    response: dict[str, Any] = {
        "id": "resp_1",
        "instructions": 'say "usage":{"input_tokens":1,"output_tokens":1} ' + "y" * instruction_bytes,
        "output": [{"id": "rs_1", "type": "reasoning", "summary": []}, item],
        "tools": [{"type": "function", "parameters": {"properties": {"usage": {"type": "object"}}}}],
        "usage": {"input_tokens": 12, "output_tokens": 34},
        "metadata": {"usage": "none"},
    }
    created = {"type": "response.created", "response": {"id": "resp_1", "usage": None}}
    added = {"type": "response.output_item.added", "item": {"id": "rs_1", "type": "reasoning"}}
    delta = {"type": "response.output_text.delta", "item_id": "msg_1", "delta": "x" * 100}
    events: list[dict[str, Any]] = [
        created,
        added,
        *[delta] * (text_bytes // 100),
        {"type": "response.completed", "response": response},
    ]
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


@pytest.mark.parametrize(("text_bytes", "instruction_bytes"), [(1000, 0), (20_000, 0), (200_000, 0), (1000, 200_000)])
def test_a_long_response_has_its_figures(text_bytes: int, instruction_bytes: int) -> None:
    """They are behind everything that may be long, and found where the last event does not fit into the window."""
    body = _stream(text_bytes, instruction_bytes)
    window = BodyWindow(body[:WINDOW_BYTES], body[WINDOW_BYTES:][-WINDOW_BYTES:], len(body), True)
    usage = DIALECTS[PATH].read_usage(prepare({"input": "x"}), STREAM, window)
    assert (usage.prompt_token_count, usage.completion_token_count) == (12, 34)
    assert usage.quality is UsageQuality.EXACT
    assert list_ids(window) == {"resp_1", "msg_1", "rs_1"}


@pytest.mark.parametrize("golden", RESPONSES.values(), ids=list(RESPONSES))
def test_ids_are_found_wherever_a_stream_breaks_off(golden: Any) -> None:
    """Never another id than those of the response and its items, and never an exception."""
    for length in range(len(golden.body)):
        found = list_ids(BodyWindow(golden.body[:length], b"", length, False))
        assert found <= {"resp_1", "msg_1", "fc_1", "rs_1"}
    assert "resp_1" in list_ids(BodyWindow(golden.body, b"", len(golden.body), True))
