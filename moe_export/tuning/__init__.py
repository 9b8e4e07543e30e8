"""Tuning: training a model on documents, whole or in parts."""
