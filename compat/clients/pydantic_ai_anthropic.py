"""pydantic-ai with Anthropic's API."""

import anthropic
import harness
import pydantic_ai_chat
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider

client = anthropic.AsyncAnthropic(base_url=harness.URL, api_key=harness.KEY)
pydantic_ai_chat.run(AnthropicModel(harness.MODEL, provider=AnthropicProvider(anthropic_client=client)))
