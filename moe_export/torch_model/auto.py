"""The classes of transformers with our MoE blocks in them, one per family, made from its facts."""

from __future__ import annotations

from functools import cache
from typing import Any

import transformers

from moe_export._transformers import pruned_config_class
from moe_export.errors import CheckpointError
from moe_export.families import FAMILIES, spec_of
from moe_export.torch_model.block import RaggedMoEBlock


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
        *path, last = family.moe_module.split(".")
        for layer, decoder_layer in enumerate(self.base_model.layers):
            parent = decoder_layer.get_submodule(".".join(path))
            setattr(parent, last, RaggedMoEBlock(spec, layer))

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
