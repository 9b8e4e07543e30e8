"""The optimizer: Muon for the projection matrices, AdamW for everything else.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon) replaces a matrix's momentum by
its nearest orthogonal matrix. Matrices of one shape are stacked and handled in one batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tools.train_demo.settings import Settings

_NEWTON_SCHULZ_STEPS = 5
# Quintic coefficients of the post above: fastest growth of small singular values.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Optimizer:
    """One `step` updates all parameters from their gradients and clears the gradients."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self._settings = settings
        matrices: dict[torch.Size, list[nn.Parameter]] = {}
        self._others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "_proj." in name:
                matrices.setdefault(parameter.shape, []).append(parameter)
            else:
                self._others.append(parameter)
        self._groups = [
            (group, torch.zeros(len(group), *shape)) for shape, group in matrices.items()
        ]
        self._adam = torch.optim.AdamW(
            [
                {
                    "params": [p for p in self._others if p.ndim == 2],
                    "weight_decay": settings.adam_weight_decay,
                },
                {"params": [p for p in self._others if p.ndim < 2], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            fused=True,
        )

    def step(self, learning_rate_factor: float) -> None:
        """Apply one update, with both learning rates multiplied by the factor."""
        nn.utils.clip_grad_norm_(self._others, 1.0)
        for group in self._adam.param_groups:
            group["lr"] = self._settings.adam_learning_rate * learning_rate_factor
        self._adam.step()
        self._adam.zero_grad()
        learning_rate = self._settings.muon_learning_rate * learning_rate_factor
        for parameters, momentum in self._groups:
            self._step_matrices(parameters, momentum, learning_rate)

    @torch.no_grad()
    def _step_matrices(
        self, parameters: list[nn.Parameter], momentum: Tensor, learning_rate: float
    ) -> None:
        # An expert that saw no token has no gradient.
        gradient = torch.stack(
            [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        )
        momentum.lerp_(gradient, 1 - self._settings.muon_momentum)
        nesterov = gradient.lerp(momentum, self._settings.muon_momentum)
        rows, columns = parameters[0].shape
        scale = learning_rate * max(1.0, rows / columns) ** 0.5
        for parameter, update in zip(parameters, orthogonalize(nesterov), strict=True):
            parameter.mul_(1 - learning_rate * self._settings.muon_weight_decay)
            parameter.sub_(update, alpha=scale)
            parameter.grad = None


def orthogonalize(matrices: Tensor) -> Tensor:
    """Roughly orthogonal matrices with the same singular vectors, by Newton-Schulz iteration.

    Args:
        matrices: [batch, rows, columns] float32.

    Returns:
        The same shape in float32; singular values end up between about 0.7 and 1.2. The iteration
        runs in bfloat16, which is exact enough for it.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    orthogonal: Tensor = (x.mT if tall else x).float()
    return orthogonal
