"""LangChain's Anthropic model."""

import harness
import langchain_chat
from langchain_anthropic import ChatAnthropic

langchain_chat.run(ChatAnthropic(model=harness.MODEL, base_url=harness.URL, api_key=harness.KEY))
