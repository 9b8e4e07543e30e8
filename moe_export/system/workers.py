"""Processes started by `torchrun` that share the work of a stage.

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

from moe_export.errors import ResourceError

PATIENCE = timedelta(days=7)
"""Longest time that a worker waits for others; stages that only the first one runs may be long."""

JOINING = timedelta(minutes=5)
"""Longest time from the first worker that joins to the last; one may have died before it could."""

CONNECTING = timedelta(seconds=30)
"""Longest time of each connection between workers that have all joined. Gloo makes them one after
the other, and waits this long for each worker that has died since."""


@dataclass(frozen=True)
class Workers:
    """Group of the processes of a run, seen from this one; by default a group of one.

    Attributes:
        rank: Number of this process; process 0 writes all files.
        size: Number of processes.

    Raises:
        ResourceError: Another process has ended; any method that exchanges something raises it.
    """

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> range:
        """Numbers of the pieces of work that this process does, of `count` pieces."""
        return range(self.rank, count, self.size)

    def gather(self, values_M: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Values of all processes in the order of ranks, on process 0; empty on the others."""
        if self.size == 1:
            return [values_M]
        import torch  # noqa: PLC0415 - heavy
        from torch import distributed  # noqa: PLC0415 - heavy

        own = torch.from_numpy(values_M)
        parts = [torch.empty_like(own) for _ in range(self.size)] if self.rank == 0 else None
        with _told_of_others():
            distributed.gather(own, parts)
        return [] if parts is None else [part.numpy() for part in parts]

    def least(self, value: int) -> int:
        """Smallest of the values of all processes."""
        if self.size == 1:
            return value
        import torch  # noqa: PLC0415 - heavy
        from torch import distributed  # noqa: PLC0415 - heavy

        shared = torch.tensor([value])
        with _told_of_others():
            distributed.all_reduce(shared, distributed.ReduceOp.MIN)
        return int(shared)

    def tell(self, message: dict[str, Any] | None) -> dict[str, Any]:
        """Sends a message from process 0 to all and returns it; the others pass None.

        A message of None is received as {}.
        """
        message = message or {}
        if self.size == 1:
            return message
        import torch  # noqa: PLC0415 - heavy
        from torch import distributed  # noqa: PLC0415 - heavy

        text = torch.from_numpy(np.frombuffer(json.dumps(message).encode(), np.uint8).copy())
        length = torch.tensor([len(text)])
        with _told_of_others():
            distributed.broadcast(length, 0)
            if self.rank != 0:
                text = torch.empty(int(length), dtype=torch.uint8)
            distributed.broadcast(text, 0)
        result: dict[str, Any] = json.loads(text.numpy().tobytes())
        return result

    def meet(self) -> None:
        """Waits until all processes have called this."""
        if self.size > 1:
            from torch import distributed  # noqa: PLC0415 - heavy

            with _told_of_others():
                distributed.barrier()


ALONE = Workers()


@contextmanager
def joined() -> Iterator[Workers]:
    """Joins the group of processes that `torchrun` has started; without one, a group of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    from torch import distributed  # noqa: PLC0415 - heavy

    with _told_of_others():
        store, rank, size = next(distributed.rendezvous("env://", timeout=JOINING))
        store.set(f"joined/{rank}", "")
        store.wait([f"joined/{other}" for other in range(size)], JOINING)
        # Only sums of a few megabytes are sent, so that NCCL would not be faster.
        distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=CONNECTING
        )
        distributed.barrier()
        distributed.distributed_c10d._set_pg_timeout(PATIENCE)  # noqa: SLF001 - no public name
    try:
        workers = Workers(distributed.get_rank(), size)
        yield workers
        # A process that leaves while another still receives from it makes the other fail.
        workers.meet()
    finally:
        distributed.destroy_process_group()


@contextmanager
def _told_of_others() -> Iterator[None]:
    """Turns torch's errors of a lost connection into a sentence.

    Raises:
        ResourceError: another process has ended, or cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        raise ResourceError(
            "another process of this run has ended or cannot be reached; see its message, and run "
            "the same command again, finished stages are kept"
        ) from error


def is_first() -> bool:
    """True if this process writes the files and messages."""
    return os.environ.get("RANK", "0") == "0"
