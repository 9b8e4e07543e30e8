"""One module per family, called by its model_type, with its facts in `FAMILY`."""
