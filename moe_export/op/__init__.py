"""The operator `moe_export::RaggedMoE`: experts of unequal width, one node per layer.

`spec` says what a node looks like, `reference` what it means, `function` expresses it in standard
operators.
"""
