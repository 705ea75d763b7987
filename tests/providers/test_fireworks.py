"""Fireworks: two APIs on one route, and models that stand for others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cgw.errors import Refusal
from cgw.model import Feature
from cgw.providers.dialect import PreparedRequest
from cgw.providers.fireworks.completions import BODY_FIELDS
from cgw.providers.fireworks.models import FIREWORKS_MODELS, VirtualModels, list_other_names
from cgw.wire.messages import Origin

PATH = "/v1/completions/fireworks"
CHAT, CODE = Feature.CHAT_COMPLETIONS, Feature.CODE_COMPLETIONS
HELLO = [{"role": "user", "content": "hello"}]
MODEL = "accounts/fireworks/models/mixtral-8x7b-instruct"
PUBLIC, OWN = "accounts/fireworks/models/", "accounts/sourcegraph/models/"

Prepare = Callable[..., PreparedRequest]


def sent(prepared: PreparedRequest) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(prepared.upstream.body)
    return body


@pytest.mark.parametrize(
    ("feature", "body", "target"),
    [
        (CHAT, {"messages": HELLO}, b"/inference/v1/chat/completions"),
        (CODE, {"prompt": "hello"}, b"/inference/v1/completions"),
        (CODE, {"messages": HELLO}, b"/inference/v1/chat/completions"),
        (CHAT, {"prompt": "hello"}, b"/inference/v1/completions"),
    ],
    ids=["chat", "code", "messages for code", "a prompt for chat"],
)
def test_the_feature_and_the_body_choose_the_api(
    prepare: Prepare, feature: Feature, body: dict[str, Any], target: bytes
) -> None:
    """Chat goes to one API, code to the other; where the body is for the other one only, it goes there."""
    prepared = prepare(PATH, {"model": MODEL, "stream": True, **body}, feature=feature)
    assert (prepared.upstream.origin, prepared.upstream.target) == (Origin("https", "fireworks.test", 443), target)
    assert sent(prepared) == {"model": MODEL, "stream": True, **body}
    assert (prepared.model, prepared.prompt_character_count) == (f"fireworks/{MODEL}", 5)
    assert (prepared.metadata, prepared.is_stream) == ({"stream": True}, True)


def test_a_body_for_both_apis_goes_by_the_feature(prepare: Prepare) -> None:
    """With messages and a prompt, the feature decides as in the reference, and the other field is dropped."""
    body = {"model": MODEL, "messages": HELLO, "prompt": "hello!"}
    assert sent(prepare(PATH, body, feature=CHAT)) == {"model": MODEL, "messages": HELLO}
    assert sent(prepare(PATH, body, feature=CODE)) == {"model": MODEL, "prompt": "hello!"}


@pytest.mark.parametrize(("feature", "field"), [(CHAT, "messages"), (CODE, "prompt")])
@pytest.mark.parametrize("body", [{}, {"messages": []}, {"prompt": None}, {"prompt": ""}])
def test_a_body_for_neither_api_is_refused(
    prepare: Prepare, feature: Feature, field: str, body: dict[str, Any]
) -> None:
    """Without messages and prompt there is nothing to complete: 400 names the field that the feature needs."""
    with pytest.raises(Refusal, match=f'request body must contain "{field}" field') as caught:
        prepare(PATH, {"model": MODEL, **body}, feature=feature)
    assert (caught.value.status, caught.value.param) == (400, field)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens"),
        ({"prompt": "a", "languageId": 5}, "languageId"),
        ({"prompt": "a", "stop": {}}, "stop"),
        ({"prompt": "a", "model": None}, "model"),
    ],
)
def test_a_wrong_field_is_named(prepare: Prepare, body: dict[str, Any], param: str) -> None:
    """A field of the wrong type gets 400 and its path."""
    with pytest.raises(Refusal) as caught:
        prepare(PATH, {"model": MODEL, **body}, feature=CODE)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_the_upstream_gets_the_fields_of_the_apis_only(prepare: Prepare) -> None:
    """Cody's autoedits are passed on; the language, the user and what is unknown are not; n is at most 1."""
    fields = {
        "temperature": 0.1,
        "max_tokens": 256,
        "response_format": {"type": "text"},
        "prediction": {"type": "content", "content": "x"},
        "rewrite_speculation": True,
        "logprobs": 0,
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    dropped = {"languageId": "go", "user": "me", "metadata": {"a": "b"}, "store": True, "junk": 1, "stop": None}
    messages = [{"role": "user", "content": "hello", "junk": 1}]
    body = {"model": f"fireworks/{MODEL}", "messages": messages, "n": 4, **fields, **dropped}
    prepared = prepare(PATH, body, feature=CODE)
    assert sent(prepared) == {"model": MODEL, "messages": HELLO, "n": 1, **fields}
    assert prepared.max_completion_tokens == 256
    assert {*fields, "n"} <= BODY_FIELDS


def test_several_prompts_have_a_completion_each(prepare: Prepare) -> None:
    """Each prompt may be answered with max_tokens."""
    prepared = prepare(PATH, {"model": MODEL, "prompt": ["ab", "cde"], "max_tokens": 10}, feature=CODE)
    assert (prepared.prompt_character_count, prepared.max_completion_tokens) == (5, 20)


@pytest.mark.parametrize(("value", "is_passed_on"), [(b"true", True), (b"True", False), (b"1", False)])
def test_only_an_exact_genie_header_is_passed_on(prepare: Prepare, value: bytes, is_passed_on: bool) -> None:
    """``X-Fireworks-Genie: true`` goes on to Fireworks, another value and other headers of the client do not."""
    headers = [(b"x-fireworks-genie", value), (b"authorization", b"Bearer client"), (b"x-fireworks-other", b"1")]
    fields = dict(prepare(PATH, {"model": MODEL, "prompt": "a"}, feature=CODE, headers=headers).upstream.headers)
    assert fields.get(b"x-fireworks-genie") == (b"true" if is_passed_on else None)
    assert fields[b"authorization"] == b"Bearer KEY-fireworks"
    assert b"x-fireworks-other" not in fields


@pytest.mark.parametrize(
    ("model", "roll", "expected"),
    [
        ("starcoder", 99, f"{OWN}starcoder-16b"),
        ("starcoder-16b", 29, f"{OWN}starcoder-16b"),
        ("starcoder-16b", 30, f"{PUBLIC}starcoder-16b"),
        ("starcoder-7b", 29, f"{OWN}starcoder-16b"),
        ("starcoder-7b", 30, f"{PUBLIC}starcoder-7b"),
        ("starcoder2-15b", 0, f"{OWN}starcoder2-15b"),
        ("starcoder2-7b", 0, f"{OWN}starcoder2-7b"),
        (f"{PUBLIC}starcoder-7b", 0, f"{PUBLIC}starcoder-7b"),
        ("unknown", 0, "unknown"),
    ],
)
def test_starcoder_stands_for_the_deployments(model: str, roll: int, expected: str) -> None:
    """The percentages decide between the single-tenant and the multi-tenant deployments (§9.7)."""
    assert VirtualModels(30, 100, lambda: roll).resolve(model, None) == expected


def test_starcoder_without_single_tenant_is_multi_tenant() -> None:
    """0 per cent is never, whatever the roll."""
    assert VirtualModels(0, 0, lambda: 0).resolve("starcoder", None) == f"{PUBLIC}starcoder-16b"


STACK, LOGS = "fim-lang-specific-model-deepseek-stack-trained", "fim-lang-specific-model-deepseek-logs-trained"
MIXTRAL = "fim-lang-specific-model-mixtral"


@pytest.mark.parametrize(
    ("model", "languages", "expected"),
    [
        (STACK, "typescript typescriptreact javascript javascriptreact", "lang-ts-like-model-deepseek-7b-stack-v2"),
        (STACK, "python", "lang-py-model-deepseek-7b-stack-v2"),
        (STACK, "go php", "deepseek-coder-7b-base"),
        (LOGS, "typescript", "lang-ts-model-deepseek-7b-logs-v2"),
        (LOGS, "javascript", "lang-js-model-deepseek-7b-logs-v2"),
        (LOGS, "python", "lang-py-model-deepseek-7b-logs-v2"),
        (LOGS, "typescriptreact javascriptreact", "lang-tsx-jsx-model-deepseek-7b-logs-v2"),
        (LOGS, "go", "deepseek-coder-7b-base"),
        (MIXTRAL, "typescript typescriptreact", "lang-typescript-model-mixtral-8x7b"),
        (MIXTRAL, "javascript", "lang-javascript-model-mixtral-8x7b"),
        (MIXTRAL, "javascriptreact", "lang-jsx-model-mixtral-8x7b"),
        (MIXTRAL, "php", "lang-php-model-mixtral-8x7b"),
        (MIXTRAL, "python", "lang-python-model-mixtral-8x7b"),
        (MIXTRAL, "go", "lang-all-model-mixtral-8x7b"),
    ],
)
def test_the_language_chooses_a_fine_tuned_model(prepare: Prepare, model: str, languages: str, expected: str) -> None:
    """Each virtual model by language stands for the reference's, which are all in the default list (§9.7, §9.9)."""
    for language in languages.split():
        prepared = prepare(PATH, {"model": model, "prompt": "a", "languageId": language}, feature=CODE)
        assert prepared.model.endswith(expected)
        assert sent(prepared)["model"] == prepared.model.removeprefix("fireworks/")
        assert sent(prepared)["model"] in FIREWORKS_MODELS
        assert prepared.other_names == (f"fireworks/{model}",)


def test_without_a_language_the_general_model_is_asked(prepare: Prepare) -> None:
    """No languageId is as good as an unknown one."""
    assert prepare(PATH, {"model": MIXTRAL, "prompt": "a"}, feature=CODE).model.endswith("lang-all-model-mixtral-8x7b")


@pytest.mark.parametrize(
    ("asked", "resolved", "names"),
    [
        ("starcoder", f"{OWN}starcoder-16b", ("starcoder",)),
        ("starcoder-7b", f"{PUBLIC}starcoder-7b", ("starcoder-7b", "starcoder")),
        (f"{PUBLIC}starcoder-16b-w8a16", f"{PUBLIC}starcoder-16b-w8a16", ("starcoder",)),
        ("starcoder2-7b", f"{OWN}starcoder2-7b", ("starcoder2-7b",)),
        (MODEL, MODEL, ()),
    ],
)
def test_a_list_with_starcoder_admits_what_it_stands_for(asked: str, resolved: str, names: tuple[str, ...]) -> None:
    """``starcoder`` in a list admits StarCoder of both sizes and all deployments (§9.1)."""
    assert list_other_names(asked, resolved) == names


def test_the_default_list_has_no_name_twice() -> None:
    """Virtual models, what they stand for, and plain ones."""
    assert len({*FIREWORKS_MODELS}) == len(FIREWORKS_MODELS)
