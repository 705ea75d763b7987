"""pydantic-ai, with the model that is given."""

import harness
from pydantic_ai import Agent


def run(model):
    """Run the action with ``model``."""

    def plain():
        return Agent(model).run_sync(harness.PROMPT).output

    def stream():
        result = Agent(model).run_stream_sync(harness.PROMPT)
        yield from result.stream_text(delta=True, debounce_by=None)

    def tools():
        return Agent(model, tools=[harness.add]).run_sync(harness.PROMPT).output

    harness.run(plain, stream, tools)
