"""Redis and Valkey from Trio: one server, a cluster, a master behind Sentinels, and the embedded server."""
