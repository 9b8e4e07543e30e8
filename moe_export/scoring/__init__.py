"""Scores of a whole model, collected over a calibration set one layer at a time."""
