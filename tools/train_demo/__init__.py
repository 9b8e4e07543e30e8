"""Trains the embedded demo model: ``python -m tools.train_demo --out DIR``."""
