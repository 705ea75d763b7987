"""OpenAI's Agents SDK, whose default is the Responses API."""

import asyncio

import harness
import openai
from agents import Agent, Runner, function_tool, set_default_openai_client, set_tracing_disabled

set_tracing_disabled(True)  # traces go to OpenAI
set_default_openai_client(openai.AsyncOpenAI(base_url=harness.URL, api_key=harness.KEY))


def plain():
    return Runner.run_sync(Agent("caller", model=harness.MODEL), harness.PROMPT).final_output


def stream():
    loop = asyncio.new_event_loop()
    events = None

    async def begin():
        return Runner.run_streamed(Agent("caller", model=harness.MODEL), harness.PROMPT)

    try:
        result = loop.run_until_complete(begin())
        events = result.stream_events()
        while True:
            try:
                event = loop.run_until_complete(anext(events))
            except StopAsyncIteration:
                return
            if (
                getattr(event.data if event.type == "raw_response_event" else None, "type", "")
                == "response.output_text.delta"
            ):
                yield event.data.delta
    finally:
        # Ends the tasks that are under way.
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.1))


def tools():
    agent = Agent("caller", model=harness.MODEL, tools=[function_tool(harness.add)])
    return Runner.run_sync(agent, harness.PROMPT).final_output


harness.run(plain, stream, tools)
