"""Refit of `down` of pruned experts, which compensates for the removed dimensions.

For an expert with routed tokens t, routing weights p and dimensions h of which P are kept, the
refitted matrix down' minimises

    sum over t of p² |down' h_P - down h|²  +  ridge * mean diag(G_PP) * |down' - down_P|²

with G = sum over t of p² h hᵀ: down' = (down G_:P + λ down_P) (G_PP + λ I)⁻¹. After GRAIL,
arXiv:2602.23795, where the ridge pulls towards zero instead, and tokens have no weights.

Layers are refitted in order: the inputs of a layer come from pruned and refitted earlier layers. A
pruned shared expert is refitted too, on all tokens.

Legend: T tokens, D hidden, W width before, P kept dimensions, N tokens routed to an expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_export.families.base import ModelSpec
from moe_export.passes.batches import batches_of
from moe_export.passes.carried import BATCH_TOKENS, CarriedModel
from moe_export.torch_model.block import RaggedMoEBlock, SwiGlu

TOKENS_PER_DIMENSION = 2
"""Least number of tokens per kept dimension; an expert with fewer is not refitted."""

SHARED_TOKENS = 4096
"""Number of tokens at a time in the shared expert, which limits memory."""


@dataclass
class Refitted:
    """Result of refitting one layer.

    Attributes:
        down: Kept columns [D, P] of the refitted experts' `down`, float32 by tensor name.
        tokens: Number of tokens of every expert, the shared one last.
    """

    down: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)


def refit_by_layer(
    directory: Path,
    kept: Mapping[tuple[int, int], NDArray[np.int64]],
    sequences: Sequence[NDArray[np.int32]],
    ridge: float,
) -> Iterator[Refitted]:
    """Refits the layers of a checkpoint in order.

    Args:
        directory: Unpruned checkpoint.
        kept: Ascending positions [P] of the kept dimensions, by layer and expert. The shared expert
            is included only if it is pruned; its number follows the last routed one.
        sequences: Token ids of each calibration sequence, int32.
        ridge: Strength of the pull towards the old weights, see the module's formula.

    Yields:
        Result of each layer, in order.
    """
    model = CarriedModel(directory, batches_of(list(sequences), BATCH_TOKENS))
    for layer in range(model.spec.num_layers):
        result = Refitted()
        with model.layer(layer):
            block = model.block(layer)
            if block is not None:
                x_TD = _inputs(model, layer, block)
                result = _refit(model.spec, layer, block, x_TD, kept, ridge)
            model.hidden_BLD = model.outputs(layer)
        yield result


def refitted(
    down_DW: Tensor, weighted_NW: Tensor, kept_P: Tensor, ridge: float
) -> NDArray[np.float32]:
    """Refitted columns [D, P] of one expert's `down`.

    Args:
        down_DW: Matrix before pruning.
        weighted_NW: Values h of each token times its routing weight.
        kept_P: Positions of the kept dimensions, int64.
        ridge: Strength of the pull towards the old weights.
    """
    return _solved(down_DW, _gram(weighted_NW, kept_P), kept_P, ridge)


def _gram(weighted_NW: Tensor, kept_P: Tensor) -> Tensor:
    """Second moments [W, P] of all dimensions with the kept ones, summed over tokens, float64."""
    return (weighted_NW.T @ weighted_NW[:, kept_P]).double()


def _solved(down_DW: Tensor, gram_WP: Tensor, kept_P: Tensor, ridge: float) -> NDArray[np.float32]:
    """Solves for the refitted columns [D, P], given the second moments."""
    gram_PP = gram_WP[kept_P]
    # The small constant keeps an expert unchanged whose values are all zero on these tokens.
    pull = ridge * float(gram_PP.diagonal().mean()) + 1e-30
    down = down_DW.double()
    right_DP = down @ gram_WP + pull * down[:, kept_P]
    left_PP = gram_PP + pull * torch.eye(len(kept_P), dtype=torch.float64)
    solved: NDArray[np.float32] = torch.linalg.solve(left_PP, right_DP.T).T.float().numpy()
    return solved


def _inputs(model: CarriedModel, layer: int, block: RaggedMoEBlock) -> Tensor:
    """Inputs [T, D] of the block at real tokens."""
    inputs: list[Tensor] = []

    def before(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        real_T = model.batches[len(inputs)].real_T
        inputs.append(arguments[0].reshape(-1, arguments[0].shape[-1])[real_T])

    handle = block.register_forward_pre_hook(before)
    try:
        model.outputs(layer)
    finally:
        handle.remove()
    return torch.cat(inputs)


def _refit(
    spec: ModelSpec,
    layer: int,
    block: RaggedMoEBlock,
    x_TD: Tensor,
    kept: Mapping[tuple[int, int], NDArray[np.int64]],
    ridge: float,
) -> Refitted:
    result = Refitted()
    with torch.no_grad():
        weight_TK, expert_TK = block.route(x_TD)
        for expert, swiglu in enumerate(block.routed):
            token_N, place_N = torch.nonzero(expert_TK == expert, as_tuple=True)
            kept_P = torch.from_numpy(kept[layer, expert])
            result.tokens.append(len(token_N))
            solved = None
            if _is_refitted(swiglu, len(token_N), kept_P):
                weighted_NW = _hidden(swiglu, x_TD[token_N]) * weight_TK[token_N, place_N][:, None]
                solved = refitted(swiglu.down.weight, weighted_NW, kept_P, ridge)
                result.down[spec.name("down", layer, expert)] = solved
            _put(swiglu, kept_P, solved)
        if (layer, spec.num_experts) in kept:
            _refit_shared(spec, layer, block, x_TD, kept, ridge, result)
    return result


def _refit_shared(
    spec: ModelSpec,
    layer: int,
    block: RaggedMoEBlock,
    x_TD: Tensor,
    kept: Mapping[tuple[int, int], NDArray[np.int64]],
    ridge: float,
    result: Refitted,
) -> None:
    """Refits the shared expert and adds it to the layer's result."""
    swiglu, kept_P = block.all_experts[-1], torch.from_numpy(kept[layer, spec.num_experts])
    result.tokens.append(len(x_TD))
    solved = None
    if _is_refitted(swiglu, len(x_TD), kept_P):
        down = swiglu.down.weight
        gram_WP = torch.zeros(down.shape[1], len(kept_P), dtype=torch.float64)
        for part_ND in x_TD.split(SHARED_TOKENS):
            gram_WP += _gram(_hidden(swiglu, part_ND) * block.shared_weight(part_ND), kept_P)
        solved = _solved(down, gram_WP, kept_P, ridge)
        result.down[spec.name("shared_down", layer)] = solved
    _put(swiglu, kept_P, solved)


def _hidden(swiglu: SwiGlu, x_ND: Tensor) -> Tensor:
    """Input [N, W] of an expert's `down`."""
    values: dict[str, Tensor] = {}
    swiglu.forward(x_ND, values.setdefault)
    return values["h"]


def _is_refitted(swiglu: SwiGlu, tokens: int, kept_P: Tensor) -> bool:
    """True if some but not all dimensions are kept, and the expert has enough tokens."""
    return 0 < len(kept_P) < swiglu.down.weight.shape[1] and enough(tokens, len(kept_P))


def _put(swiglu: SwiGlu, kept_P: Tensor, solved: NDArray[np.float32] | None) -> None:
    """Puts pruned or refitted columns into the expert, for the passes through later layers."""
    down = swiglu.down.weight
    columns = down[:, kept_P].clone() if solved is None else torch.from_numpy(solved)
    down.zero_()
    down[:, kept_P] = columns


def enough(tokens: int, kept_dimensions: int) -> bool:
    """True if an expert has enough tokens to be refitted."""
    return tokens >= TOKENS_PER_DIMENSION * kept_dimensions
