"""Makers of the reference pages that follow from the code: recipe, command line, artifacts."""
