"""The tour of the gateway (``cgw demo``), which needs no API key and no network."""
