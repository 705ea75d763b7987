"""LangChain's OpenAI model."""

import harness
import langchain_chat
from langchain_openai import ChatOpenAI

langchain_chat.run(ChatOpenAI(model=harness.MODEL, base_url=harness.URL, api_key=harness.KEY))
