"""Places that usage events are shipped to, each in a module of its own."""
