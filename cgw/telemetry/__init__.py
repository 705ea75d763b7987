"""Logging, and posting to Slack."""
