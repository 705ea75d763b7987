"""The scenario ``events``: usage events recorded and shipped by one process, without a gateway around it."""
