"""Limits: token buckets and leases in Redis, with one Lua call to admit an exchange and one to settle it."""
