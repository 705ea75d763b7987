"""pydantic-ai with OpenAI's Chat Completions."""

import harness
import pydantic_ai_chat
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=harness.URL, api_key=harness.KEY)
pydantic_ai_chat.run(OpenAIChatModel(harness.MODEL, provider=provider))
