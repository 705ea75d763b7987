"""The benchmark suite: gateways side by side, pinned, interleaved, under open-loop load. See docs/benchmarks.md."""
