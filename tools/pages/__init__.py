"""Makers of the generated pages in docs/results."""
