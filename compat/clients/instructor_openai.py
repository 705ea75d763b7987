"""instructor on OpenAI's SDK: answers are objects, which the model gives as a call of a tool."""

import harness
import instructor
import openai
from pydantic import BaseModel

plain_client = openai.OpenAI(base_url=harness.URL, api_key=harness.KEY)
client = instructor.from_openai(plain_client)
MESSAGES = [{"role": "user", "content": harness.PROMPT}]


class add(BaseModel):  # the tool has the class's name
    """Two numbers to add."""

    first: int
    second: int


def plain():
    # Without a model for the answer it passes the SDK's own.
    answer = client.chat.completions.create(model=harness.MODEL, messages=MESSAGES, response_model=None)
    return answer.choices[0].message.content


def stream():
    chunks = client.chat.completions.create(model=harness.MODEL, messages=MESSAGES, response_model=None, stream=True)
    with chunks:
        for chunk in chunks:
            yield chunk.choices[0].delta.content if chunk.choices else ""


def tools():
    found = client.chat.completions.create(model=harness.MODEL, messages=MESSAGES, response_model=add)
    harness.note_call("add", found.model_dump())
    return ""


harness.run(plain, stream, tools)
