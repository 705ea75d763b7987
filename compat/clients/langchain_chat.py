"""LangChain, with the chat model that is given."""

import harness
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool


def run(model):
    """Run the action with ``model``."""

    def plain():
        return model.invoke(harness.PROMPT).text

    def stream():
        for chunk in model.stream(harness.PROMPT):
            yield chunk.text

    def tools():
        offered = tool(harness.add)
        bound = model.bind_tools([offered])
        messages = [HumanMessage(harness.PROMPT)]
        while True:
            answer = bound.invoke(messages)
            if not answer.tool_calls:
                return answer.text
            messages.append(answer)
            messages += [
                ToolMessage(str(offered.invoke(call["args"])), tool_call_id=call["id"]) for call in answer.tool_calls
            ]

    harness.run(plain, stream, tools)
