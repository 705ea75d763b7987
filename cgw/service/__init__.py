"""Build everything from the settings, run it, and end it in order."""
