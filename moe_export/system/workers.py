"""Several processes that share the work of one stage, as `torchrun` starts them.

Legend: M values of an array.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

PATIENCE = timedelta(days=7)
"""How long a worker waits for others: stages that only the first carries out may take long."""


@dataclass(frozen=True)
class Workers:
    """This process among those of a run; by default the only one.

    Attributes:
        rank: its number; 0 writes all files.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> range:
        """Which of `count` pieces of work are this process's."""
        return range(self.rank, count, self.size)

    def gather(self, values_M: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Everyone's values in the order of ranks, on the first; nothing on the others."""
        if self.size == 1:
            return [values_M]
        import torch  # noqa: PLC0415 - heavy
        from torch import distributed  # noqa: PLC0415 - heavy

        own = torch.from_numpy(values_M)
        found = [torch.empty_like(own) for _ in range(self.size)] if self.rank == 0 else None
        distributed.gather(own, found)
        return [] if found is None else [part.numpy() for part in found]

    def least(self, value: int) -> int:
        """The smallest of everyone's values."""
        if self.size == 1:
            return value
        import torch  # noqa: PLC0415 - heavy
        from torch import distributed  # noqa: PLC0415 - heavy

        shared = torch.tensor([value])
        distributed.all_reduce(shared, distributed.ReduceOp.MIN)
        return int(shared)

    def tell(self, message: dict[str, Any] | None) -> dict[str, Any]:
        """What the first has to say, to everyone; the others give None, which is heard as {}."""
        message = message or {}
        if self.size == 1:
            return message
        import torch  # noqa: PLC0415 - heavy
        from torch import distributed  # noqa: PLC0415 - heavy

        text = torch.from_numpy(np.frombuffer(json.dumps(message).encode(), np.uint8).copy())
        length = torch.tensor([len(text)])
        distributed.broadcast(length, 0)
        if self.rank != 0:
            text = torch.empty(int(length), dtype=torch.uint8)
        distributed.broadcast(text, 0)
        result: dict[str, Any] = json.loads(text.numpy().tobytes())
        return result

    def meet(self) -> None:
        """Waits until everyone is here."""
        if self.size > 1:
            from torch import distributed  # noqa: PLC0415 - heavy

            distributed.barrier()


ALONE = Workers()


@contextmanager
def joined() -> Iterator[Workers]:
    """The group that `torchrun` has started this process in, or it alone without one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    from torch import distributed  # noqa: PLC0415 - heavy

    # Sums of a few megabytes are all that is passed on, so that NCCL would gain nothing.
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        workers = Workers(distributed.get_rank(), size)
        yield workers
        # One that leaves while another still hears from it takes that one down.
        workers.meet()
    finally:
        distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this process writes files and says what there is to say."""
    return os.environ.get("RANK", "0") == "0"
