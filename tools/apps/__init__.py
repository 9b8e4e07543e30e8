"""Exported models in the applications of others: `python -m tools.apps`."""
