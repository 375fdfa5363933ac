"""The benchmark suite: ``llpf bench``, or ``pytest benchmarks``; docs/benchmarks.md says how to read its results."""
