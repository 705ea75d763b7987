"""litellm with Anthropic's API."""

import litellm_chat

litellm_chat.run("anthropic", max_tokens=1000)
