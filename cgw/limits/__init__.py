"""Token buckets in Redis: one Lua call to admit an exchange, one to settle it."""
