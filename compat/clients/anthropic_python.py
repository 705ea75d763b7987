"""Anthropic's SDK."""

import anthropic
import harness

client = anthropic.Anthropic(base_url=harness.URL, api_key=harness.KEY)
MESSAGES = [{"role": "user", "content": harness.PROMPT}]
TOOLS = [{"name": "add", "input_schema": harness.SCHEMA}]
FIELDS = {"model": harness.MODEL, "max_tokens": 1000}


def plain():
    return client.messages.create(**FIELDS, messages=MESSAGES).content[0].text


def stream():
    with client.messages.stream(**FIELDS, messages=MESSAGES) as chunks:
        yield from chunks.text_stream


def tools():
    messages = list(MESSAGES)
    while True:
        # The beta client adds `?beta=true` and a header.
        with client.beta.messages.stream(**FIELDS, messages=messages, tools=TOOLS) as chunks:
            message = chunks.get_final_message()
        asked = [block for block in message.content if block.type == "tool_use"]
        if not asked:
            return message.content[0].text
        for block in asked:
            harness.note_call(block.name, block.input)
        uses = [{"type": "tool_use", "id": block.id, "name": block.name, "input": block.input} for block in asked]
        results = [{"type": "tool_result", "tool_use_id": block.id, "content": "2"} for block in asked]
        messages += [{"role": "assistant", "content": uses}, {"role": "user", "content": results}]


harness.run(plain, stream, tools)
