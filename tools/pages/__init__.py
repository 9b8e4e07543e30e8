"""Makers of the pages in docs/results: `python -m tools.pages` lists them.

A page is a module with `add_options(parser)` and `make(arguments)`, which ends in `write_page`, and
with `markdown(data)`, the page from its data alone.
"""
