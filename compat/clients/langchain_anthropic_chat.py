"""LangChain's Anthropic model."""

import harness
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool

model = ChatAnthropic(model=harness.MODEL, base_url=harness.URL, api_key=harness.KEY)


@tool
def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


def plain():
    return model.invoke(harness.PROMPT).text


def stream():
    for chunk in model.stream(harness.PROMPT):
        yield chunk.text


def tools():
    call = {"name": "add", "args": {"first": 1, "second": 1}, "id": "call_1"}
    history = [HumanMessage(harness.PROMPT), AIMessage("", tool_calls=[call]), ToolMessage("2", tool_call_id="call_1")]
    return model.bind_tools([add]).invoke(history).text


harness.run(plain, stream, tools)
