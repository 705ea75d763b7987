"""Snippets to paste: the gateway's routes with ``curl``, and the SDKs with only base URL and key changed."""

from __future__ import annotations

from attrs import frozen

# Both are in the gateway's default lists of models.
CLAUDE = "claude-sonnet-4-5"
GPT = "gpt-4o"


@frozen
class Snippet:
    """Complete lines of ``language`` (``bash`` or ``python``) that run without changes."""

    title: str
    language: str
    code: str


def build_snippets(url: str, token: str, user_token: str) -> tuple[Snippet, ...]:
    """Return all snippets, for the gateway at ``url``, an actor's ``token`` and that of a user of Sourcegraph.com."""
    return (
        Snippet("Anthropic's models, on the route that Sourcegraph instances use", "bash", _curl_anthropic(url, token)),
        Snippet("OpenAI's models, the same way", "bash", _curl_openai(url, token)),
        Snippet("Anthropic's own API", "bash", _curl_anthropic_sdk_route(url, token)),
        Snippet("The same as a user of Sourcegraph.com", "bash", _curl_openai(url, user_token)),
        Snippet("What is left of your limits", "bash", f"curl -s {url}/v1/limits -H 'Authorization: Bearer {token}'"),
        Snippet("Anthropic's SDK (pip install anthropic)", "python", _python_anthropic(url, token)),
        Snippet("OpenAI's SDK (pip install openai)", "python", _python_openai(url, token)),
    )


def _curl_anthropic(url: str, token: str) -> str:
    # -N has curl print each event as it arrives. Doubled braces are single ones in an f-string.
    return f"""\
curl -N {url}/v1/completions/anthropic-messages \\
  -H 'Authorization: Bearer {token}' \\
  -H 'X-Sourcegraph-Feature: chat_completions' -H 'Content-Type: application/json' \\
  -d '{{"model": "{CLAUDE}", "max_tokens": 200, "stream": true,
       "messages": [{{"role": "user", "content": [{{"type": "text", "text": "Hello?"}}]}}]}}'"""


def _curl_openai(url: str, token: str) -> str:
    return f"""\
curl -N {url}/v1/completions/openai \\
  -H 'Authorization: Bearer {token}' \\
  -H 'X-Sourcegraph-Feature: chat_completions' -H 'Content-Type: application/json' \\
  -d '{{"model": "{GPT}", "stream": true, "messages": [{{"role": "user", "content": "Hello?"}}]}}'"""


def _curl_anthropic_sdk_route(url: str, token: str) -> str:
    return f"""\
curl -N {url}/anthropic/v1/messages \\
  -H 'x-api-key: {token}' \\
  -H 'anthropic-version: 2023-06-01' -H 'Content-Type: application/json' \\
  -d '{{"model": "{CLAUDE}", "max_tokens": 200, "stream": true,
       "messages": [{{"role": "user", "content": "Hello?"}}]}}'"""


def _python_anthropic(url: str, token: str) -> str:
    return f'''\
import anthropic
client = anthropic.Anthropic(
    base_url="{url}/anthropic",
    api_key="{token}",
)
messages = [{{"role": "user", "content": "Hello?"}}]
with client.messages.stream(model="{CLAUDE}", max_tokens=200, messages=messages) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)'''


def _python_openai(url: str, token: str) -> str:
    return f'''\
import openai
client = openai.OpenAI(
    base_url="{url}/openai/v1",
    api_key="{token}",
)
messages = [{{"role": "user", "content": "Hello?"}}]
for chunk in client.chat.completions.create(model="{GPT}", messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)'''
