"""litellm, with Anthropic's API."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it fetches a list of prices

import harness
import litellm

FIELDS = {"model": f"anthropic/{harness.MODEL}", "api_base": harness.URL, "api_key": harness.KEY, "max_tokens": 1000}
MESSAGES = [{"role": "user", "content": harness.PROMPT}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


def plain():
    return litellm.completion(**FIELDS, messages=MESSAGES).choices[0].message.content


def stream():
    for chunk in litellm.completion(**FIELDS, messages=MESSAGES, stream=True):
        yield chunk.choices[0].delta.content


def tools():
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]
    return litellm.completion(**FIELDS, messages=messages, tools=TOOLS).choices[0].message.content


harness.run(plain, stream, tools)
