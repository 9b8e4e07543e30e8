"""State of a training between steps, from which an interrupted one goes on to the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from moe_export.artifacts.base import load_tensors, save_tensors
from moe_export.tuning.condense import Condensing

FILE = "state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of AdamW's moments in torch."""

Losses = list[float]


def save_state(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    adam: torch.optim.AdamW,
    losses: Losses,
    condensing: Condensing | None = None,
) -> None:
    """Writes the state after as many steps as there are losses, atomically.

    Raises:
        ResourceError: The disk is full.
    """
    tensors = {"losses": np.array(losses, np.float64)}
    for name, parameter in parameters.items():
        tensors[f"value {name}"] = parameter.detach().numpy()
        for moment in MOMENTS:
            tensors[f"{moment} {name}"] = adam.state[parameter][moment].numpy()
    for block in condensing.blocks if condensing is not None else ():
        tensors[f"bias {block.layer}"] = block.router_bias.numpy()
        tensors[f"condensers {block.layer}"] = np.array(block.own_condensers, np.int64)
    partial = folder / f"{FILE}.partial"
    save_tensors(partial, tensors)
    partial.replace(folder / FILE)


def load_state(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    adam: torch.optim.AdamW,
    condensing: Condensing | None = None,
) -> Losses:
    """Restores the state if there is one, and returns the losses of the steps that are done."""
    if not (folder / FILE).exists():
        return []
    tensors = load_tensors(folder / FILE)
    losses: Losses = tensors["losses"].tolist()
    for name, parameter in parameters.items():
        parameter.data.copy_(torch.from_numpy(tensors[f"value {name}"]))
        adam.state[parameter] = {
            "step": torch.tensor(float(len(losses))),
            **{moment: torch.from_numpy(tensors[f"{moment} {name}"]) for moment in MOMENTS},
        }
    if condensing is not None:
        for block in condensing.blocks:
            block.router_bias.copy_(torch.from_numpy(tensors[f"bias {block.layer}"]))
        layers = [block.layer for block in condensing.blocks]
        condensing.set_experts({n: tuple(tensors[f"condensers {n}"].tolist()) for n in layers})
    return losses
