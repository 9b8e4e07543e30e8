"""Kinds of hostile inputs, one module each."""
