"""Logits that are not finite, as of a float16 model whose activations overflow.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.validation import NotFinite


@dataclass
class FiniteCheck:
    """Count of the positions whose logits are not finite.

    Attributes:
        positions: Number of positions that were looked at.
        not_finite: Number of positions with a NaN or an infinity.
        first: Token ids of the first sequence with such a position; None if all are finite.
    """

    positions: int = 0
    not_finite: int = 0
    first: list[int] | None = None

    def checked(
        self, sequence: Sequence[int], logits_TV: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Counts the positions of one sequence, and returns logits that can be scored.

        A position without finite logits gets zeros: every token is equally likely there.

        Args:
            sequence: Token ids.
            logits_TV: Logits at every position, float32 [T, V].
        """
        is_finite_T = np.isfinite(logits_TV.max(-1)) & np.isfinite(logits_TV.min(-1))
        self.positions += len(is_finite_T)
        if is_finite_T.all():
            return logits_TV
        self.not_finite += int(len(is_finite_T) - is_finite_T.sum())
        self.first = self.first or list(sequence)
        return np.where(is_finite_T[:, None], logits_TV, np.float32(0))

    def outcome(self, directory: Path) -> NotFinite | None:
        """Count and place of the first overflow; None if all logits are finite.

        Args:
            directory: Folder of the exported model, which is run once more on the CPU.
        """
        if self.first is None:
            return None
        from moe_export.graph import first_overflow  # noqa: PLC0415 - only for a failure

        layer, tensor = first_overflow(directory, self.first)
        return NotFinite(
            positions=self.not_finite, of=self.positions, first_layer=layer, first_tensor=tensor
        )
