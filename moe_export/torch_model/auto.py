"""Model classes of transformers with our MoE blocks in them, one per family."""

from __future__ import annotations

from functools import cache
from typing import Any

import transformers

from moe_export.errors import CheckpointError
from moe_export.families import FAMILIES, spec_of
from moe_export.families.transformers_config import pruned_config_class
from moe_export.torch_model.block import RaggedMoEBlock

RENAMED = "mlp"
"""Name of the MoE block in transformers 5, also in families whose checkpoints name it otherwise."""

ALWAYS_FLOAT32 = ("compressed", "gate.bias")
"""Parts of the names of vectors of compressed experts and of router biases: bfloat16 loses them."""


@cache
def model_class(model_type: str) -> type[Any]:
    """Causal language model class for a family's pruned checkpoints.

    Args:
        model_type: Model type of the family, without the prefix of pruned checkpoints.
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
        if spec.compressed is not None or spec.condensers is not None:
            # transformers 4 checks the class's own list against the names of plain models.
            others = getattr(self, "_keep_in_fp32_modules_strict", None) or ()
            self._keep_in_fp32_modules_strict = {*others, *ALWAYS_FLOAT32}
        logits = family.moe_returns_logits and transformers.__version__.startswith("4.")
        for layer, decoder_layer in enumerate(self.base_model.layers):
            if spec.latent is not None:
                # transformers 4 does not scale DeepSeek's attention scores by YaRN's factor.
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
    """Replaces the MoE block of transformers by ours, registered under its name in checkpoints.

    If transformers 5 has renamed the block, the new name is a plain attribute of the layer, so that
    torch does not register the block twice.
    """
    if not hasattr(decoder_layer, name):
        delattr(decoder_layer, RENAMED)
        decoder_layer.__dict__[RENAMED] = block
    setattr(decoder_layer, name, block)
