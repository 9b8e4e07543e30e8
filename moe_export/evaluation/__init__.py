"""Accuracy of a model: scores, differences, parity and gates."""
