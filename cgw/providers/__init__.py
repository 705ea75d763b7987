"""Pure dialects of the providers' APIs: they build requests and read answers, they never send anything."""
