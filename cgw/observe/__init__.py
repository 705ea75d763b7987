"""Logs, notices and tables for people; the only room that may import vendors' SDKs."""
