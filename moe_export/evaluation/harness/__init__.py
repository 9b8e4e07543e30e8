"""Tasks of lm-eval (the extra `eval`) on checkpoints in torch and exported models in ONNX Runtime.

lm-eval finds models in a table of its own, so the adapters of `models` are handed to it in this
process. They derive from its class for transformers: prompts get BOS, are cut and are batched as
there.
"""
