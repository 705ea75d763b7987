"""Sans-I/O parts of HTTP: heads, framing, server-sent events. Nothing here knows of sockets or of Trio."""
