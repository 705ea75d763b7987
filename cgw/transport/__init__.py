"""Sockets: the listener, client connections, the upstream pool, the relay."""
