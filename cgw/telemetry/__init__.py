"""Logs, and messages to Slack."""
