"""Facts of a model in its own file (`metadata_props`), which viewers and runtimes show."""

from __future__ import annotations

from moe_export.families.base import ModelSpec
from moe_export.op.spec import Layout

PREFIX = "moe_export."


def first_runtime(spec: ModelSpec) -> str:
    """Oldest version of ONNX Runtime that runs a model, as far as tested."""
    # 1.31 does not have the operator GatedDeltaNet.
    return "1.32" if "delta_net" in spec.mixers else "1.22"


def model_metadata(
    spec: ModelSpec, layout: Layout, source: str, kept: int, whole: int
) -> dict[str, str]:
    """Entries that say what a model was made from and what it needs.

    Args:
        spec: Sizes and formats of the model.
        layout: Layout of the experts' weights.
        source: Name of the model that it was made from.
        kept: Number of expert dimensions, shared experts included.
        whole: Number of expert dimensions before pruning.
    """
    formats = spec.quantization
    entries = {
        "source": source,
        "kept_share": f"{kept / whole:.4f}" if whole else "1.0000",
        "experts": ", ".join(sorted(formats.formats_of_experts)),
        "dense": formats.dense,
        "embedding": formats.embedding,
        "lm_head": formats.lm_head or formats.dense,
        "layout": layout,
        "needs_library": str(layout == "packed").lower(),
        "onnxruntime": f">={first_runtime(spec)}",
    }
    return {PREFIX + key: value for key, value in entries.items()}
