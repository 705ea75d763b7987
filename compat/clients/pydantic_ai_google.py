"""pydantic-ai with the Gemini API."""

import harness
import pydantic_ai_chat
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.providers.google import GoogleProvider

provider = GoogleProvider(base_url=harness.URL, api_key=harness.KEY)
pydantic_ai_chat.run(GoogleModel(harness.MODEL, provider=provider))
