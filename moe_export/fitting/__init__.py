"""Methods that fit a pruned or quantized model to the original, layer by layer."""
