"""The models of Fireworks: those that are allowed by default, and virtual ones, which stand for a choice of others."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial

from attrs import field, frozen

_PUBLIC = "accounts/fireworks/models/"
_OWN = "accounts/sourcegraph/models/"

STARCODER = "starcoder"
"""The virtual model whose name in a list of models also admits the models that it stands for (§9.1)."""

_SINGLE_TENANT = f"{_OWN}starcoder-16b"
_STARCODERS = frozenset(
    {_SINGLE_TENANT, *(f"{_PUBLIC}starcoder-{size}" for size in ("16b", "7b", "16b-w8a16", "7b-w8a16"))}
)
_RENAMED = {size: f"{_OWN}{size}" for size in ("starcoder2-15b", "starcoder2-7b")}

# Virtual models for which the language of the file decides: first the models by language, then the one for all others.
_STACK = f"{_OWN}finetuned-fim-lang-{{}}-model-deepseek-7b-stack-v2"
_LOGS = f"{_OWN}finetuned-fim-lang-{{}}-model-deepseek-7b-logs-v2"
_MIXTRAL = f"{_OWN}finetuned-fim-lang-{{}}-model-mixtral-8x7b"
_DEEPSEEK_7B = f"{_OWN}deepseek-coder-7b-base"


def _fill(template: str, **languages: str) -> Mapping[str, str]:
    return {language: template.format(part) for language, part in languages.items()}


_BY_LANGUAGE: Mapping[str, tuple[Mapping[str, str], str]] = {
    "fim-lang-specific-model-deepseek-stack-trained": (
        _fill(
            _STACK,
            typescript="ts-like",
            typescriptreact="ts-like",
            javascript="ts-like",
            javascriptreact="ts-like",
            python="py",
        ),
        _DEEPSEEK_7B,
    ),
    "fim-lang-specific-model-deepseek-logs-trained": (
        _fill(
            _LOGS,
            typescript="ts",
            javascript="js",
            python="py",
            typescriptreact="tsx-jsx",
            javascriptreact="tsx-jsx",
        ),
        _DEEPSEEK_7B,
    ),
    "fim-lang-specific-model-mixtral": (
        _fill(
            _MIXTRAL,
            typescript="typescript",
            typescriptreact="typescript",
            javascript="javascript",
            javascriptreact="jsx",
            php="php",
            python="python",
        ),
        _MIXTRAL.format("all"),
    ),
}


@frozen
class VirtualModels:
    """Chooses the model that a request's name stands for (the reference's §9.7).

    The percentages are how many of a hundred requests go to the single-tenant deployment of StarCoder:
    ``enterprise_percent`` of those for ``starcoder``, ``community_percent`` of those for ``starcoder-16b`` and
    ``starcoder-7b``. ``roll`` returns a number from 0 to 99, each as often as the others.
    """

    community_percent: int = 0
    enterprise_percent: int = 100
    roll: Callable[[], int] = field(default=partial(random.randrange, 100), repr=False, eq=False)

    def resolve(self, model: str, language: str | None) -> str:
        """Return the model to ask, for a name without prefix and the id of the file's language, if there is one."""
        if model in _BY_LANGUAGE:
            by_language, other = _BY_LANGUAGE[model]
            return by_language.get(language or "", other)
        if model in _RENAMED:
            return _RENAMED[model]
        if model not in (STARCODER, "starcoder-16b", "starcoder-7b"):
            return model
        percent = self.enterprise_percent if model == STARCODER else self.community_percent
        if self.roll() < percent:
            return _SINGLE_TENANT
        return f"{_PUBLIC}starcoder-7b" if model == "starcoder-7b" else f"{_PUBLIC}starcoder-16b"


def list_other_names(asked: str, resolved: str) -> tuple[str, ...]:
    """Return the names under which a list of models may have ``resolved``, besides its own.

    ``asked`` is the name in the request: a list with a virtual model need not have all that it may stand for, as in the
    reference, where only ``starcoder`` has that meaning.
    """
    names = () if asked == resolved else (asked,)
    return (*names, STARCODER) if resolved in _STARCODERS and asked != STARCODER else names


FIREWORKS_MODELS = (
    # The reference's list.
    STARCODER, f"{_OWN}starcoder2-15b", f"{_OWN}starcoder2-7b", f"{_PUBLIC}starcoder-16b", f"{_PUBLIC}starcoder-7b",
    f"{_PUBLIC}starcoder-16b-w8a16", f"{_PUBLIC}starcoder-7b-w8a16", f"{_OWN}starcoder-16b",
    f"{_PUBLIC}llama-v2-7b-code", f"{_PUBLIC}llama-v2-13b-code", f"{_PUBLIC}llama-v2-13b-code-instruct",
    f"{_PUBLIC}llama-v2-34b-code-instruct", f"{_PUBLIC}mistral-7b-instruct-4k", f"{_PUBLIC}mixtral-8x7b-instruct",
    f"{_PUBLIC}mixtral-8x22b-instruct", f"{_PUBLIC}starcoder-3b-w8a16", f"{_PUBLIC}starcoder-1b-w8a16",
    f"{_OWN}custom-deepseek-1p3b-base-hf-version", _DEEPSEEK_7B, f"{_OWN}deepseek-coder-v2-lite-base",
    f"{_OWN}code-qwen-1p5-7b",
    *(f"{_OWN}lang-{language}-context-fim-meta-llama-3-8b-instruct-e-1"
      for language in ("typescript", "javascript", "php", "python")),
    f"{_OWN}finetuned-fim-lang-all-model-meta-llama-3-8b",
    # The virtual models by language, with all that they stand for.
    *_BY_LANGUAGE, *dict.fromkeys(model for models, _ in _BY_LANGUAGE.values() for model in models.values()),
    _MIXTRAL.format("all"),
    # What Fireworks' pages name for its serverless API.
    *(f"{_PUBLIC}{name}" for name in (
        "deepseek-r1-0528", "deepseek-v3-0324", "deepseek-v3p1", "deepseek-v3p2", "deepseek-v4-flash", "glm-4p5",
        "glm-4p5-air", "glm-4p6", "glm-4p7", "glm-5", "glm-5p2", "glm-5p3", "gpt-oss-120b", "gpt-oss-20b",
        "kimi-k2-instruct", "kimi-k2p5", "kimi-k2p6", "kimi-k3", "llama-v3-8b-instruct", "llama-v3-70b-instruct",
        "llama-v3p1-8b-instruct", "llama-v3p3-70b-instruct", "qwen3-235b-a22b", "qwen3-coder-480b-a35b-instruct",
        "qwen3p8-max",
    )),
)  # fmt: skip
"""The default list for Fireworks, without the provider's prefix."""
