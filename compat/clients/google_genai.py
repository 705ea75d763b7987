"""Google's SDK; it calls the function by itself."""

import harness
from google import genai
from google.genai import types

client = genai.Client(api_key=harness.KEY, http_options=types.HttpOptions(base_url=harness.URL))


def plain():
    return client.models.generate_content(model=harness.MODEL, contents=harness.PROMPT).text


def stream():
    for chunk in client.models.generate_content_stream(model=harness.MODEL, contents=harness.PROMPT):
        yield chunk.text


def tools():
    config = types.GenerateContentConfig(tools=[harness.add])
    return client.models.generate_content(model=harness.MODEL, contents=harness.PROMPT, config=config).text


harness.run(plain, stream, tools)
