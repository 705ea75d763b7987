"""litellm with OpenAI's API."""

import litellm_chat

litellm_chat.run("openai")
