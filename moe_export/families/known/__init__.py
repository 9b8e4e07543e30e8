"""Families, one module each, named by model_type, with the family's facts in `FAMILY`."""
