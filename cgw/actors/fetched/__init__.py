"""Actors that are fetched from a source over the network, and kept in this process and in Redis."""
