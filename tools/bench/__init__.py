"""What the benchmarks share: the work, the sides that do it, and how their turns are interleaved."""
