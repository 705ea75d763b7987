"""Limits while Redis is away: counted in this process, and charged to Redis afterwards."""
