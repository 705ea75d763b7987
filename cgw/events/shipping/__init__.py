"""Shipping: usage events go from the event log to sinks, in batches, at least once."""
