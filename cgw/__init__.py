"""cgw: a managed proxy for LLM traffic, on Trio."""

from __future__ import annotations

__version__ = "0.1.0"
