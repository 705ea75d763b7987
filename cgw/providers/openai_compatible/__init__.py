"""Providers whose API follows OpenAI's, as many as the settings name: settings and dialects."""
