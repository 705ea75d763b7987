"""Usage events: recorded as lines of a log before the end of the response is released, read back, summed up."""
