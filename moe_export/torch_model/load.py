"""Loader of a checkpoint into torch, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from moe_export.checkpoint import Checkpoint
from moe_export.errors import CheckpointError, MoeExportError
from moe_export.families import open_checkpoint, spec_of
from moe_export.families.base import PRUNED_PREFIX, WIDTHS_KEY, ModelSpec, TensorSpec
from moe_export.families.stored import read_values
from moe_export.families.transformers_config import pruned_config_class
from moe_export.quantization import QUANTIZATION_KEY
from moe_export.torch_model.auto import model_class

GENERATION_FILE = "generation_config.json"

LONGEST_REASON = 300
"""Most characters of an error of transformers within a sentence."""


def load_torch_model(
    directory: Path,
    dtype: torch.dtype,
    top_k: int | None = None,
    added: Mapping[str, Any] = MappingProxyType({}),
) -> PreTrainedModel:
    """Loads the model of a checkpoint, pruned or not, on the CPU in evaluation mode.

    Its class is the family's class of transformers with a `RaggedMoEBlock` for each MoE block. In
    an unpruned checkpoint all experts have one width. Quantized weights are dequantized.

    Args:
        directory: Checkpoint of a known family.
        dtype: Dtype of the parameters in memory; stored values are converted.
        top_k: Experts per token, in place of the config's; None to keep those.
        added: Config keys that the checkpoint lacks, of compressed experts or a router bias; their
            vectors are ones and their biases zeros.

    Raises:
        RecipeError: `top_k` is more than the model's.
        CheckpointError: A file or tensor is missing, damaged, unknown or superfluous.
    """
    checkpoint, spec = extended_checkpoint(directory, top_k, added)
    model = empty_model(checkpoint, spec, dtype)
    tensors = {
        name: stored_or_neutral(checkpoint, spec, name).to(dtype_of(tensor, dtype))
        for name, tensor in spec.tensors.items()
    }
    if spec.tied_embeddings:
        tensors[spec.name("lm_head")] = tensors[spec.name("embedding")]
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    return model


def extended_checkpoint(
    directory: Path, top_k: int | None, added: Mapping[str, Any]
) -> tuple[Checkpoint, ModelSpec]:
    """Opens a checkpoint, with config keys that it lacks; see `load_torch_model`."""
    checkpoint, spec = open_checkpoint(directory, top_k)
    if not added:
        return checkpoint, spec
    checkpoint.config |= added
    return checkpoint, spec_of(checkpoint.config)


def stored_or_neutral(checkpoint: Checkpoint, spec: ModelSpec, name: str) -> Tensor:
    """Tensor of a checkpoint in its stored dtype, or neutral values where it has none."""
    if spec.tensors[name].stored is not None and name not in checkpoint.tensors:
        return neutral(spec.tensors[name])
    return to_torch(read_values(checkpoint, spec, name))


def neutral(tensor: TensorSpec) -> Tensor:
    """Values of a vector or a bias that change nothing, float32."""
    fill = torch.zeros if tensor.role == "router_bias" else torch.ones
    return fill(tensor.shape)


def dtype_of(tensor: TensorSpec, dtype: torch.dtype) -> torch.dtype:
    """Dtype of a tensor in a model of the given dtype: that, or a wider one."""
    return torch.promote_types(dtype, torch.float32) if tensor.is_wide else dtype


def empty_model(checkpoint: Checkpoint, spec: ModelSpec, dtype: torch.dtype) -> PreTrainedModel:
    """Builds the model of a checkpoint in evaluation mode, with weights on the meta device.

    Args:
        checkpoint: Checkpoint of a known family.
        spec: Sizes of the model, read from the checkpoint's config.
        dtype: Dtype that the weights will have.

    Raises:
        CheckpointError: transformers does not accept the config, or disagrees with the family on
            the names of the tensors.
    """
    family = spec.family
    directory = checkpoint.directory
    # In memory all weights are floats.
    floats = {key: value for key, value in checkpoint.config.items() if key != QUANTIZATION_KEY}
    content = floats | {
        "model_type": PRUNED_PREFIX + family.model_type,
        WIDTHS_KEY: [list(widths) for widths in spec.widths],
    }
    with _explained(directory / "config.json"):
        config = pruned_config_class(family.model_type).from_dict(content)
        # The meta device allocates no memory and draws no random weights.
        with torch.device("meta"):
            model: PreTrainedModel = model_class(family.model_type)(config)
    tied = {spec.name("lm_head")} if spec.tied_embeddings else set()
    wrong = sorted((spec.tensors.keys() | tied) ^ model.state_dict().keys())
    if wrong:
        raise CheckpointError(
            f"{directory}: {family.architecture} of the installed transformers and the facts of "
            f"{family.model_type} disagree on tensor {wrong[0]} (and {len(wrong) - 1} more); use "
            "a supported version of transformers"
        )
    _compute_buffers(model, config)
    model.config.dtype = dtype
    if (directory / GENERATION_FILE).exists():
        with _explained(directory / GENERATION_FILE):
            model.generation_config = GenerationConfig.from_pretrained(directory)
    return model.eval().requires_grad_(False)


def to_torch(array: NDArray[Any]) -> Tensor:
    """Tensor with the values and dtype of an array; torch does not accept numpy's bfloat16."""
    array = np.require(array, requirements=["C", "W"])
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns an error of transformers about a file into a sentence that names the file.

    transformers checks values by errors of many kinds, so all kinds are caught.
    """
    try:
        yield
    except (MoeExportError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path}: transformers {transformers.__version__} does not accept it "
            f"({reason[:LONGEST_REASON]}); correct the value or take the file of the published "
            "model"
        ) from error


def _compute_buffers(model: nn.Module, config: Any) -> None:
    """Recreates the modules whose buffers are computed from the config (rotary frequencies).

    On the meta device these buffers were not computed, and the checkpoint does not hold them.
    """
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, type(module)(config=config))
