"""The scripted upstream that the tour, the tests and the benchmarks share."""
