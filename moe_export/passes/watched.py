"""Record of what goes into a block and comes out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from moe_export.torch_model.block import RaggedMoEBlock


@dataclass
class Seen:
    """Input and output of a block in its last call, [..., D]; set before they are read."""

    x: Tensor = field(init=False)
    output: Tensor = field(init=False)


@contextmanager
def watched(block: RaggedMoEBlock) -> Iterator[Seen]:
    """Records the input and output of a block in a `with` block."""
    seen = Seen()

    def after(
        _module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor | tuple[Tensor, Tensor]
    ) -> None:
        seen.x = arguments[0]
        seen.output = output[0] if isinstance(output, tuple) else output

    handle = block.register_forward_hook(after)
    try:
        yield seen
    finally:
        handle.remove()
