"""Refitting `down` of pruned experts, so that what is kept stands in for what is not.

For an expert with routed tokens t, routing weights p and the dimensions h of which P are kept, the
refitted matrix is the one with the least

    sum over t of p² |down' h_P - down h|²  +  ridge * mean diag(G_PP) * |down' - down_P|²

with G = sum over t of p² h hᵀ: down' = (down G_:P + λ down_P) (G_PP + λ I)⁻¹. After GRAIL,
arXiv:2602.23795, where the ridge pulls towards zero instead, and tokens have no weights.

Layer by layer: the tokens of a layer come from earlier layers that are pruned and refitted already.

A shared expert that is pruned is refitted as well, on all tokens.

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
"""An expert with fewer tokens than this times its kept dimensions stays as it is."""

SHARED_TOKENS = 4096
"""So many at a time go through the shared expert, which all tokens reach."""


@dataclass
class Refitted:
    """One layer.

    Attributes:
        down: by name, the kept columns [D, P] of the experts that were refitted.
        tokens: of every expert, the shared one last.
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
        directory: the unpruned checkpoint.
        kept: by layer and expert, ascending positions of what is kept; of the shared expert, whose
            number is that after the last, where it is pruned.
        sequences: calibration tokens.
        ridge: see above.
    """
    model = CarriedModel(directory, batches_of(list(sequences), BATCH_TOKENS))
    for layer in range(model.spec.num_layers):
        found = Refitted()
        with model.layer(layer):
            block = model.block(layer)
            if block is not None:
                x_TD = _inputs(model, layer, block)
                found = _refit(model.spec, layer, block, x_TD, kept, ridge)
            model.hidden_BLD = model.outputs(layer)
        yield found


def refitted(
    down_DW: Tensor, weighted_NW: Tensor, kept_P: Tensor, ridge: float
) -> NDArray[np.float32]:
    """The kept columns [D, P] of one expert's `down`.

    Args:
        down_DW: as it is.
        weighted_NW: h of each token times its routing weight.
        kept_P: positions that stay.
        ridge: how strongly it is held where it is.
    """
    return _solved(down_DW, _gram(weighted_NW, kept_P), kept_P, ridge)


def _gram(weighted_NW: Tensor, kept_P: Tensor) -> Tensor:
    """Second moments [W, P] of all dimensions with the kept ones, float64."""
    return (weighted_NW.T @ weighted_NW[:, kept_P]).double()


def _solved(down_DW: Tensor, gram_WP: Tensor, kept_P: Tensor, ridge: float) -> NDArray[np.float32]:
    """`refitted` from the second moments."""
    gram_PP = gram_WP[kept_P]
    # An expert that does nothing at all on these tokens stays as it is.
    pull = ridge * float(gram_PP.diagonal().mean()) + 1e-30
    down = down_DW.double()
    right_DP = down @ gram_WP + pull * down[:, kept_P]
    left_PP = gram_PP + pull * torch.eye(len(kept_P), dtype=torch.float64)
    solved: NDArray[np.float32] = torch.linalg.solve(left_PP, right_DP.T).T.float().numpy()
    return solved


def _inputs(model: CarriedModel, layer: int, block: RaggedMoEBlock) -> Tensor:
    """What the block is given, real tokens alone."""
    seen: list[Tensor] = []

    def before(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        real_T = model.batches[len(seen)].real_T
        seen.append(arguments[0].reshape(-1, arguments[0].shape[-1])[real_T])

    handle = block.register_forward_pre_hook(before)
    try:
        model.outputs(layer)
    finally:
        handle.remove()
    return torch.cat(seen)


def _refit(
    spec: ModelSpec,
    layer: int,
    block: RaggedMoEBlock,
    x_TD: Tensor,
    kept: Mapping[tuple[int, int], NDArray[np.int64]],
    ridge: float,
) -> Refitted:
    found = Refitted()
    with torch.no_grad():
        weight_TK, expert_TK = block.route(x_TD)
        for expert, swiglu in enumerate(block.routed):
            token_N, place_N = torch.nonzero(expert_TK == expert, as_tuple=True)
            kept_P = torch.from_numpy(kept[layer, expert])
            found.tokens.append(len(token_N))
            solved = None
            if _is_refitted(swiglu, len(token_N), kept_P):
                weighted_NW = _hidden(swiglu, x_TD[token_N]) * weight_TK[token_N, place_N][:, None]
                solved = refitted(swiglu.down.weight, weighted_NW, kept_P, ridge)
                found.down[spec.name("down", layer, expert)] = solved
            _put(swiglu, kept_P, solved)
        if (layer, spec.num_experts) in kept:
            _refit_shared(spec, layer, block, x_TD, kept, ridge, found)
    return found


def _refit_shared(
    spec: ModelSpec,
    layer: int,
    block: RaggedMoEBlock,
    x_TD: Tensor,
    kept: Mapping[tuple[int, int], NDArray[np.int64]],
    ridge: float,
    found: Refitted,
) -> None:
    """The shared expert, to what has been found of the layer."""
    swiglu, kept_P = block.all_experts[-1], torch.from_numpy(kept[layer, spec.num_experts])
    found.tokens.append(len(x_TD))
    solved = None
    if _is_refitted(swiglu, len(x_TD), kept_P):
        down = swiglu.down.weight
        gram_WP = torch.zeros(down.shape[1], len(kept_P), dtype=torch.float64)
        for part_ND in x_TD.split(SHARED_TOKENS):
            gram_WP += _gram(_hidden(swiglu, part_ND) * block.shared_weight(part_ND), kept_P)
        solved = _solved(down, gram_WP, kept_P, ridge)
        found.down[spec.name("shared_down", layer)] = solved
    _put(swiglu, kept_P, solved)


def _hidden(swiglu: SwiGlu, x_ND: Tensor) -> Tensor:
    """The input [N, W] of an expert's `down`."""
    values: dict[str, Tensor] = {}
    swiglu.forward(x_ND, values.setdefault)
    return values["h"]


def _is_refitted(swiglu: SwiGlu, tokens: int, kept_P: Tensor) -> bool:
    """Whether there is something to be made up for, and enough to do it by."""
    return 0 < len(kept_P) < swiglu.down.weight.shape[1] and enough(tokens, len(kept_P))


def _put(swiglu: SwiGlu, kept_P: Tensor, solved: NDArray[np.float32] | None) -> None:
    """Makes the expert what it will be, which is what the layers that follow see."""
    down = swiglu.down.weight
    columns = down[:, kept_P].clone() if solved is None else torch.from_numpy(solved)
    down.zero_()
    down[:, kept_P] = columns


def enough(tokens: int, kept_dimensions: int) -> bool:
    """Whether an expert has been seen often enough to be refitted."""
    return tokens >= TOKENS_PER_DIMENSION * kept_dimensions
