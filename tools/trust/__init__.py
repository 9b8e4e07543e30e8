"""Campaigns that try to break moe-export: `python -m tools.trust CAMPAIGN`.

Each tries inputs or events that nobody wishes for, judges every outcome, and writes its figures,
which `python -m tools.pages trust` puts into docs/results/trust.md.
"""
