"""Widths and formats within a budget."""
