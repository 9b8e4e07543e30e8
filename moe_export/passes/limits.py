"""Memory limits of passes, which predictions need without loading torch."""

from __future__ import annotations

LOGIT_BYTES = 4 * 128 << 20
"""Memory of the logits of a chunk of tokens and of their gradients; see `passes.loss`."""
