"""Exported models in applications of others, each version in an environment of its own."""
