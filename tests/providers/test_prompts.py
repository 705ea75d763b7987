"""The text of prompts, as flagging examines it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.providers.prompts import Prompt

LABELS = {"user": "Human: ", "assistant": "Assistant: ", "system": "System: "}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def build(body: dict[str, Any]) -> Prompt:
    """Return a prompt of the Messages API."""
    return Prompt(body, "system", "messages", labels=LABELS, has_token_limits=True)


def test_s9_5_the_prompt_is_flattened() -> None:
    """A label for each role, the texts without anything in between, and a blank line."""
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
        {"role": "other", "content": "d"},
    ]
    prompt = build({"system": "s", "messages": messages})
    assert "".join(prompt.read_text()) == "System: s\n\nHuman: ab\n\nAssistant: c\n\nd\n\n"
    assert "".join(prompt.read_other_text()) == ""


def test_text_of_a_tools_result_is_text() -> None:
    """The model reads it as such, and it counts as characters of the prompt."""
    results = [
        {"type": "tool_result", "content": "a"},
        {"type": "tool_result", "content": [{"type": "text", "text": "b"}]},
        {"type": "tool_result"},
    ]
    assert "".join(build({"messages": [{"role": "user", "content": results}]}).read_text()) == "Human: ab\n\n"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            {"tools": [{"name": "n", "input_schema": {"properties": {"p": {}}}}]},
            "tools name n input_schema properties p",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "weird", "text": "t"}]}]}, "type weird text t"),
        ({"messages": [{"role": "user", "content": [{"data": "xxxx", "type": "base64"}]}]}, "data type base64"),
        ({"messages": [{"role": "user", "content": [{"data": "xxxx", "type": "text"}]}]}, "data xxxx type text"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"arguments": "{}"}]}]}, "arguments {}"),
        ({"stop": ["a", 1, None, ["b"]]}, "stop a b"),
    ],
)
def test_all_else_that_the_model_may_see_is_other_text(body: dict[str, Any], text: str) -> None:
    """Keys and strings at any depth, but for bytes of images and the like."""
    assert "".join(build(body).read_other_text()).split() == text.split()


def test_google_and_texts() -> None:
    """Turns have parts, and the old API has the prompt in a text."""
    body = {
        "systemInstruction": {"parts": [{"text": "s"}]},
        "contents": [{"role": "user", "parts": [{"text": "a"}, {"inlineData": {"data": "xx"}}, {"text": "b"}]}],
    }
    prompt = Prompt(body, "systemInstruction", "contents", "parts")
    assert "".join(prompt.read_text()) == "s\nab\n"
    assert "".join(Prompt.of_text("hello").read_text()).strip() == "hello"


@given(body=st.dictionaries(st.sampled_from(["system", "messages", "tools", "x"]), JSON, max_size=4))
def test_any_body_is_read(body: dict[str, Any]) -> None:
    """Nothing in a body makes reading it fail."""
    prompt = build(body)
    assert prompt.message_count >= 0
    for piece in (*prompt.read_text(), *prompt.read_other_text()):
        assert isinstance(piece, str)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "x"}] * 10_000},
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": []}] * 10_000}]},
        {"tools": [[]] * 10_000},
        {"tools": [1] * 10_000},
        {"x": {str(number): 1 for number in range(10_000)}},
    ],
    ids=["messages", "results", "lists", "numbers", "fields"],
)
def test_every_bit_of_work_yields_a_piece(body: dict[str, Any]) -> None:
    """So that the examination can pause after any number of them, whatever the body is made of."""
    prompt = build(body)
    assert sum(1 for _ in prompt.read_other_text()) + sum(1 for _ in prompt.read_text()) >= 10_000


def test_deep_nesting_is_read() -> None:
    """By a stack of its own."""
    value: Any = "end"
    for _ in range(50_000):
        value = [value]
    assert "end" in list(build({"tools": value}).read_other_text())
