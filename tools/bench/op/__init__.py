"""Benchmark of the operator against peers and limits."""
