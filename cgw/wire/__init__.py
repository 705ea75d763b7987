"""Sans-I/O parts of HTTP: heads, framing, server-sent events. Nothing here does I/O or imports Trio."""
