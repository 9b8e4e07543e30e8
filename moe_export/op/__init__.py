"""The operator `moe_export::RaggedMoE`: experts of unequal width, one node per layer.

`spec` holds the names and types of a node, `reference` its meaning, `function` its body of standard
operators. `packed` is the layout of `RaggedMoEPacked`; `native` and `triton` hold the kernels.
"""
