"""Dialects of the providers' APIs: they build upstream requests and read responses, without I/O."""
