"""Tiny models, cases of the operator and executors, shared by tests, tools and the device check."""
