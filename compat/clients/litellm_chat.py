"""litellm, with the provider that is asked for."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it fetches a list of prices

import harness
import litellm

litellm.telemetry = False
litellm.suppress_debug_info = True
MESSAGES = [{"role": "user", "content": harness.PROMPT}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": harness.SCHEMA}}]


def run(provider, **more):
    """Run the action with ``provider``."""
    fields = {"model": f"{provider}/{harness.MODEL}", "api_base": harness.URL, "api_key": harness.KEY, **more}

    def plain():
        return litellm.completion(**fields, messages=MESSAGES).choices[0].message.content

    def stream():
        for chunk in litellm.completion(**fields, messages=MESSAGES, stream=True):
            yield chunk.choices[0].delta.content

    def tools():
        messages = list(MESSAGES)
        while True:
            message = litellm.completion(**fields, messages=messages, tools=TOOLS).choices[0].message
            if not message.tool_calls:
                return message.content
            messages.append(message.model_dump())
            for call in message.tool_calls:
                harness.note_call(call.function.name, call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": "2"})

    harness.run(plain, stream, tools)
