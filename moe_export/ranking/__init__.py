"""Comparison of rankings on held-out sequences, for `plan.score: auto`."""
