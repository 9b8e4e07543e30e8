"""Batches on their way through a model, one decoder layer at a time."""
