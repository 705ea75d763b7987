"""Embeddings: the models of ``/v1/embeddings``, their upstreams' requests and answers, without I/O."""
