"""Logs; the only room that may import vendors' SDKs."""
