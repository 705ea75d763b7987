"""OpenAI's SDK, Responses."""

import harness
import openai

client = openai.OpenAI(base_url=harness.URL, api_key=harness.KEY)
TOOLS = [{"type": "function", "name": "add", "parameters": harness.SCHEMA}]


def plain():
    return client.responses.create(model=harness.MODEL, input=harness.PROMPT).output_text


def stream():
    with client.responses.create(model=harness.MODEL, input=harness.PROMPT, stream=True) as events:
        for event in events:
            yield event.delta if event.type == "response.output_text.delta" else ""


def tools():
    items = [{"role": "user", "content": harness.PROMPT}]
    while True:
        with client.responses.stream(model=harness.MODEL, input=items, tools=TOOLS) as events:
            response = events.get_final_response()
        asked = [item for item in response.output if item.type == "function_call"]
        if not asked:
            return response.output_text
        for item in asked:
            harness.note_call(item.name, item.arguments)
            items += [
                {"type": "function_call", "call_id": item.call_id, "name": item.name, "arguments": item.arguments},
                {"type": "function_call_output", "call_id": item.call_id, "output": "2"},
            ]


harness.run(plain, stream, tools)
