"""The classes of transformers with our MoE blocks in them, one per family, made from its facts."""

from __future__ import annotations

from functools import cache
from typing import Any

import transformers

from moe_export.errors import CheckpointError
from moe_export.families import FAMILIES, spec_of
from moe_export.families.transformers_config import pruned_config_class
from moe_export.torch_model.block import RaggedMoEBlock

RENAMED = "mlp"
"""What transformers 5 calls the MoE block of families that had another name for it."""


@cache
def model_class(model_type: str) -> type[Any]:
    """The causal language model of a family's pruned checkpoints.

    Args:
        model_type: of the family, without the prefix.
    """
    family = FAMILIES[model_type]
    base: Any = getattr(transformers, family.architecture)

    def init(self: Any, config: Any) -> None:
        spec = spec_of(config.to_dict())
        if not spec.quantization.is_float:
            raise CheckpointError(
                "transformers cannot load codes as weights: load the quantized checkpoint by "
                "moe_export.torch_model.load_torch_model, or the pruned one in its place"
            )
        base.__init__(self, config)
        logits = family.moe_returns_logits and transformers.__version__.startswith("4.")
        for layer, decoder_layer in enumerate(self.base_model.layers):
            # transformers 4 forgets what YaRN does to the scores of DeepSeek's attention.
            decoder_layer.self_attn.scaling = spec.attention_scale
            if spec.has_experts(layer):
                block = RaggedMoEBlock(spec, layer, returns_logits=logits)
                _replace(decoder_layer, family.moe_module, block)

    return type(
        f"Ragged{base.__name__}",
        (base,),
        {
            "__doc__": f"{base.__name__} with experts of unequal widths.",
            "__module__": __name__,
            "__init__": init,
            "config_class": pruned_config_class(model_type),
        },
    )


def _replace(decoder_layer: Any, name: str, block: RaggedMoEBlock) -> None:
    """Puts a block in place of the MoE block of transformers, under its name in checkpoints.

    Where transformers 5 has renamed the block, it is registered by the name that checkpoints have,
    and found by the layer under the new one, which for torch is no module.
    """
    if not hasattr(decoder_layer, name):
        delattr(decoder_layer, RENAMED)
        decoder_layer.__dict__[RENAMED] = block
    setattr(decoder_layer, name, block)
