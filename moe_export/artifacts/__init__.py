"""Files that pass between stages, one class each."""
