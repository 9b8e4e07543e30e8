"""Refitting `down` of pruned experts, so that what is kept stands in for what is not.

For an expert with routed tokens t, routing weights p and the dimensions h of which P are kept, the
refitted matrix is the one with the least

    sum over t of p² |down' h_P - down h|²  +  ridge * mean diag(G_PP) * |down' - down_P|²

with G = sum over t of p² h hᵀ: down' = (down G_:P + λ down_P) (G_PP + λ I)⁻¹. After GRAIL,
arXiv:2602.23795, where the ridge pulls towards zero instead, and tokens have no weights.

Layer by layer: the tokens of a layer come from earlier layers that are pruned and refitted already.

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
from moe_export.scores.batches import batches_of
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.torch_model.layerwise import BATCH_TOKENS, CarriedModel

TOKENS_PER_DIMENSION = 2
"""An expert with fewer tokens than this times its kept dimensions stays as it is."""


@dataclass
class Refitted:
    """One layer.

    Attributes:
        down: by name, the kept columns [D, P] of the experts that were refitted.
        tokens: of every expert.
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
        kept: by layer and expert, ascending positions of what is kept.
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
    gram_WP = (weighted_NW.T @ weighted_NW[:, kept_P]).double()
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
            values: dict[str, Tensor] = {}

            def note(quantity: str, value: Tensor, to: dict[str, Tensor] = values) -> Tensor:
                return to.setdefault(quantity, value)

            swiglu.forward(x_TD[token_N], note)
            kept_P = torch.from_numpy(kept[layer, expert])
            found.tokens.append(len(token_N))
            down = swiglu.down.weight
            columns = down[:, kept_P].clone()
            if 0 < len(kept_P) < down.shape[1] and enough(len(token_N), len(kept_P)):
                weighted_NW = values["h"] * weight_TK[token_N, place_N][:, None]
                solved = refitted(down, weighted_NW, kept_P, ridge)
                found.down[spec.name("down", layer, expert)] = solved
                columns = torch.from_numpy(solved)
            # What follows sees the expert as it will be.
            down.zero_()
            down[:, kept_P] = columns
    return found


def enough(tokens: int, kept_dimensions: int) -> bool:
    """Whether an expert has been seen often enough to be refitted."""
    return tokens >= TOKENS_PER_DIMENSION * kept_dimensions
