"""OpenAI's SDK, Chat Completions."""

import harness
import openai

client = openai.OpenAI(base_url=harness.URL, api_key=harness.KEY)
MESSAGES = [{"role": "user", "content": harness.PROMPT}]
TOOLS = [{"type": "function", "function": {"name": "add", "strict": True, "parameters": harness.SCHEMA}}]


def plain():
    return client.chat.completions.create(model=harness.MODEL, messages=MESSAGES).choices[0].message.content


def stream():
    with client.chat.completions.create(model=harness.MODEL, messages=MESSAGES, stream=True) as chunks:
        for chunk in chunks:
            yield chunk.choices[0].delta.content if chunk.choices else ""


def tools():
    messages = list(MESSAGES)
    while True:
        # Streamed, and put together by the SDK.
        with client.chat.completions.stream(model=harness.MODEL, messages=messages, tools=TOOLS) as chunks:
            message = chunks.get_final_completion().choices[0].message
        if not message.tool_calls:
            return message.content
        messages.append(message.model_dump(include={"role", "content", "tool_calls"}))
        for call in message.tool_calls:
            harness.note_call(call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "2"})


harness.run(plain, stream, tools)
