"""The benchmark suite: gateways on one core each, measured in turn under open-loop load. See docs/benchmarks.md."""
