"""Anthropic: settings, models, dialects, usage readers."""
