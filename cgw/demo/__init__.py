"""A tour of the gateway that needs no key and no network."""
