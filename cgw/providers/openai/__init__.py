"""OpenAI: settings, models, dialects, usage readers."""
