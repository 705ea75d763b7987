"""A tour of the gateway that needs no key and no network, and the scripted upstream it talks to."""
