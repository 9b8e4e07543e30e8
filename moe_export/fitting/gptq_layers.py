"""GPTQ of a whole model: `formats.gptq` with the inputs of each matrix.

Layers are quantized in order: the inputs of a matrix come from a model whose earlier layers are
quantized, and the inputs of `down` come from the quantized gate and up of its expert. In a matrix
of an expert, a token counts by the square of its routing weight (or of the shared expert's gate).

Legend: T tokens, D hidden, N tokens routed to an expert, W its width, K inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_export.errors import CheckpointError
from moe_export.families.base import ModelSpec
from moe_export.families.quantized import in_formats
from moe_export.formats import QuantizedMatrix, gptq
from moe_export.formats.matrix import side_by_side
from moe_export.op import rounding as native
from moe_export.passes.batches import batches_of
from moe_export.passes.carried import BATCH_TOKENS, CarriedModel
from moe_export.quantization import Method, Quantization, QuantizeResult
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.torch_model.compressed import scaled

SAME_INPUT = {"k": "q", "v": "q", "up": "gate", "shared_up": "shared_gate"}
"""Roles whose matrices have the same input as the matrix of another role."""

COLUMNS_AT_ONCE = 8192
"""Number of columns quantized at a time, which limits the memory that a large vocabulary needs."""


class Rounding(Protocol):
    """The function that rounds a weight [N, K] to the nearest codes."""

    def __call__(
        self, format_name: str, weight_NK: NDArray[Any], group_size: int, *, search: bool = False
    ) -> QuantizedMatrix:
        """Rounds a weight, with scales of least squared error if `search` is True."""
        ...


@dataclass
class _MatrixInputs:
    """Inputs of one matrix, gathered over the batches.

    Attributes:
        x: Inputs of each batch, [T, K].
        share: Routing weights of each batch, [T, 1]; empty if tokens have none.
    """

    x: list[Tensor] = field(default_factory=list)
    share: list[Tensor] = field(default_factory=list)

    def weighted(self) -> Tensor:
        """Inputs [T, K] of all batches, each token times its routing weight if it has one."""
        x_TK = torch.cat(self.x)
        return x_TK * torch.cat(self.share) if self.share else x_TK


def quantize_by_layer(
    directory: Path,
    quantization: Quantization,
    sequences: Sequence[NDArray[np.int32]],
    damping: float,
    rounding: Rounding = native.quantize,
) -> Iterator[tuple[int | None, dict[str, QuantizeResult]]]:
    """Quantizes a checkpoint: its layers in order, then the lm_head.

    Args:
        directory: Float checkpoint.
        quantization: Formats of the tensors.
        sequences: Token ids of each calibration sequence, int32.
        damping: Share of the mean diagonal that is added, see `formats.gptq.inverse_factor`.
        rounding: Function that rounds a matrix that too few tokens reach.

    Yields:
        Number of a layer (None for the lm_head) and its quantized matrices by name.

    Raises:
        CheckpointError: A file or tensor is missing or damaged, or a weight has no code.
    """
    batches = batches_of(list(sequences), BATCH_TOKENS)
    model = CarriedModel(directory, batches)
    spec = in_formats(model.spec, quantization)
    fit = partial(_fit, quantization=quantization, damping=damping, rounding=rounding)
    for layer in range(spec.num_layers):
        names = _names(spec, quantization, layer)
        with model.layer(layer):
            inputs = _inputs(spec, names, layer)
            with _watched(model, spec, layer, inputs) as seen:
                model.outputs(layer)
            results: dict[str, QuantizeResult] = {}
            for same in _alike(spec, [name for name in names if name not in _routed(spec, names)]):
                results |= fit(model.model, same, seen[inputs[same[0]]].weighted(), spec)
            block = model.block(layer)
            if block is not None and _routed(spec, names):
                results |= _experts(model.model, spec, layer, block, seen, fit)
            model.hidden_BLD = model.outputs(layer)
        yield layer, results
    names = _names(spec, quantization, None)
    with model.head() as (norm, _):
        yield None, _head(model, norm, spec, names, fit)


Fit = Callable[..., dict[str, QuantizeResult]]


def _fit(
    model: nn.Module,
    names: Sequence[str],
    x_TK: Tensor,
    spec: ModelSpec,
    *,
    quantization: Quantization,
    damping: float,
    rounding: Rounding,
) -> dict[str, QuantizeResult]:
    """Quantizes matrices that have the same input, and writes them dequantized into the model."""
    tokens, depth = x_TK.shape
    group_size = quantization.group_size
    hessian_KK = (x_TK.T @ x_TK).double().numpy()
    # With fewer tokens than inputs the Hessian is singular.
    used: Method = "gptq" if tokens >= depth else "mse"
    factor_KK = gptq.inverse_factor(hessian_KK, damping) if used == "gptq" else None
    results = {}
    for name in names:
        weight: Any = model.get_parameter(name)
        format_name = quantization.format_of(spec.tensors[name].role, spec.tensors[name].layer)
        assert format_name is not None
        weight_NK = weight.numpy().astype(np.float32)
        try:
            if factor_KK is None:
                matrix = rounding(format_name, weight_NK, group_size, search=True)
            else:
                matrix = side_by_side(
                    [
                        gptq.quantize(columns_KN, factor_KK, format_name, group_size)
                        for columns_KN in _columns(weight_NK.T)
                    ]
                )
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from error
        weight.copy_(torch.from_numpy(np.ascontiguousarray(matrix.dequantized().T)))
        fell_back = used != "gptq" and weight_NK.size > 0
        results[name] = QuantizeResult(matrix, used, tokens, fell_back=fell_back)
    return results


def _experts(
    model: nn.Module,
    spec: ModelSpec,
    layer: int,
    block: RaggedMoEBlock,
    seen: Mapping[str, _MatrixInputs],
    fit: Fit,
) -> dict[str, QuantizeResult]:
    """Quantizes the routed experts, each with the tokens that the router sends to it."""
    x_TD = torch.cat(seen[BLOCK].x)
    with torch.no_grad():
        weight_TK, expert_TK, scales = block.routed_and_scaled(x_TD)
        results: dict[str, QuantizeResult] = {}
        for expert, swiglu in enumerate(block.routed):
            token_N, place_N = torch.nonzero(expert_TK == expert, as_tuple=True)
            x_ND, share_N1 = x_TD[token_N], weight_TK[token_N, place_N][:, None]
            own = scales.of(token_N, block.units(expert))
            gate, up = (spec.name(role, layer, expert) for role in ("gate", "up"))
            together = [gate, up] if own.up_ND is None else [gate]
            results |= fit(model, together, scaled(x_ND, own.input_ND) * share_N1, spec)
            if own.up_ND is not None:
                results |= fit(model, [up], scaled(x_ND, own.up_ND) * share_N1, spec)
            values: dict[str, Tensor] = {}
            swiglu.forward(x_ND, values.setdefault, own)
            name = spec.name("down", layer, expert)
            results |= fit(model, [name], values["h"] * share_N1, spec)
    return results


def _head(
    model: CarriedModel, norm: nn.Module, spec: ModelSpec, names: Sequence[str], fit: Fit
) -> dict[str, QuantizeResult]:
    """Quantizes the lm_head with the normalized last hidden states."""
    if not names:
        return {}
    with torch.no_grad():
        x_TD = torch.cat(
            [
                norm(hidden_BLD).flatten(0, 1)[batch.real_T]
                for hidden_BLD, batch in zip(model.hidden_BLD, model.batches, strict=True)
            ]
        )
    return fit(model.model, names, x_TD, spec)


BLOCK = "moe"
"""Key of the input of a layer's MoE block."""


@contextmanager
def _watched(
    model: CarriedModel, spec: ModelSpec, layer: int, inputs: Mapping[str, str]
) -> Iterator[dict[str, _MatrixInputs]]:
    """Gathers the inputs of the named matrices and of the MoE block at real tokens.

    The hooks rely on batches that run in order.
    """
    seen: dict[str, _MatrixInputs] = {}
    shares = _MatrixInputs()
    with ExitStack() as stack:

        def watch(name: str, module: nn.Module) -> None:
            def before(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
                inputs_of = seen.setdefault(name, _MatrixInputs())
                inputs_of.x.append(_real(model, len(inputs_of.x), arguments[0]))

            stack.callback(module.register_forward_pre_hook(before).remove)

        for name in set(inputs.values()):
            watch(name, model.submodule_of(name))
        block = model.block(layer)
        if block is not None:
            watch(BLOCK, block)
        router = _shared_router(spec, layer)
        if router is not None:

            def after(_module: nn.Module, _arguments: Any, output: Tensor) -> None:
                shares.x.append(_real(model, len(shares.x), torch.sigmoid(output)))

            stack.callback(model.submodule_of(router).register_forward_hook(after).remove)
        yield seen
    for name, matrix_inputs in seen.items():
        if name != BLOCK and spec.tensors[name].role.startswith("shared_") and shares.x:
            matrix_inputs.share = shares.x


def _real(model: CarriedModel, batch: int, value: Tensor) -> Tensor:
    """Rows [T, K] of the real tokens of a batch."""
    return value.detach().flatten(0, -2)[model.batches[batch].real_T]


def _shared_router(spec: ModelSpec, layer: int) -> str | None:
    for name, tensor in spec.tensors.items():
        if tensor.layer == layer and tensor.role == "shared_router":
            return name
    return None


def _names(spec: ModelSpec, quantization: Quantization, layer: int | None) -> list[str]:
    """Names of a layer's tensors that are quantized."""
    return [
        name
        for name, tensor in spec.tensors.items()
        if tensor.layer == layer
        and tensor.role != "embedding"
        and quantization.format_of(tensor.role, tensor.layer) is not None
    ]


def _routed(spec: ModelSpec, names: Sequence[str]) -> set[str]:
    return {name for name in names if spec.tensors[name].expert is not None}


def _inputs(spec: ModelSpec, names: Sequence[str], layer: int) -> dict[str, str]:
    """Name of the matrix whose input is gathered, for each matrix outside the routed experts."""
    return {
        name: spec.name(SAME_INPUT.get(spec.tensors[name].role, spec.tensors[name].role), layer)
        for name in names
        if spec.tensors[name].expert is None
    }


def _alike(spec: ModelSpec, names: Sequence[str]) -> list[list[str]]:
    """Groups of names whose matrices have the same input."""
    groups: dict[str, list[str]] = {}
    for name in names:
        role = spec.tensors[name].role
        groups.setdefault(SAME_INPUT.get(role, role), []).append(name)
    return list(groups.values())


def _columns(matrix_KN: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    columns = matrix_KN.shape[1]
    for start in range(0, max(columns, 1), COLUMNS_AT_ONCE):
        yield matrix_KN[:, start : start + COLUMNS_AT_ONCE]
