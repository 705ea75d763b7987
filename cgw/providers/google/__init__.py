"""Google's Gemini API: settings, models, the dialect, usage readers."""
