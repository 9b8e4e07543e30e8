"""Processes started by `torchrun` that share the work of a stage.

Legend: M values of an array.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import ResourceError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroupGloo

PATIENCE = timedelta(days=7)
"""Longest time that a worker waits for others; stages that only the first one runs may be long."""

JOINING = timedelta(minutes=5)
"""Longest time from the first worker that joins to the last; one may have died before it could."""

CONNECTING = timedelta(seconds=30)
"""Longest time of each connection between workers that have all joined. Gloo makes them one after
the other, and waits this long for each worker that has died since."""


@dataclass(eq=False)
class Workers:
    """Group of the processes of a run, seen from this one; by default a group of one.

    The group is no default group of torch: every module of torch that is imported later would keep
    that one, and with it threads that abort a process which ends while they let go of a tensor.

    Attributes:
        rank: Number of this process; process 0 writes all files.
        size: Number of processes.
        group: Connections to the other processes; None in a group of one.

    Raises:
        ResourceError: Another process has ended; any method that exchanges something raises it.
    """

    rank: int = 0
    size: int = 1
    group: ProcessGroupGloo | None = field(default=None, repr=False)

    def share(self, count: int) -> range:
        """Numbers of the pieces of work that this process does, of `count` pieces."""
        return range(self.rank, count, self.size)

    def gather(self, values_M: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Values of all processes in the order of ranks, on process 0; empty on the others."""
        if self.group is None:
            return [values_M]
        import torch  # noqa: PLC0415 - heavy

        own = torch.from_numpy(values_M)
        parts = [torch.empty_like(own) for _ in range(self.size)] if self.rank == 0 else []
        with _told_of_others():
            self.group.gather([parts] if parts else [], [own]).wait()
        return [part.numpy() for part in parts]

    def least(self, value: int) -> int:
        """Smallest of the values of all processes."""
        if self.group is None:
            return value
        import torch  # noqa: PLC0415 - heavy
        from torch.distributed import ReduceOp  # noqa: PLC0415 - heavy

        shared = torch.tensor([value])
        with _told_of_others():
            self.group.allreduce(shared, ReduceOp.MIN).wait()
        return int(shared)

    def tell(self, message: dict[str, Any] | None) -> dict[str, Any]:
        """Sends a message from process 0 to all and returns it; the others pass None.

        A message of None is received as {}.
        """
        message = message or {}
        if self.group is None:
            return message
        import torch  # noqa: PLC0415 - heavy

        text = torch.from_numpy(np.frombuffer(json.dumps(message).encode(), np.uint8).copy())
        length = torch.tensor([len(text)])
        with _told_of_others():
            self.group.broadcast(length, 0).wait()
            if self.rank != 0:
                text = torch.empty(int(length), dtype=torch.uint8)
            self.group.broadcast(text, 0).wait()
        result: dict[str, Any] = json.loads(text.numpy().tobytes())
        return result

    def meet(self) -> None:
        """Waits until all processes have called this."""
        if self.group is not None:
            with _told_of_others():
                self.group.barrier().wait()

    def leave(self) -> None:
        """Ends the connections and their threads; nothing can be exchanged afterwards."""
        self.group = None


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
        group = distributed.ProcessGroupGloo(store, rank, size, CONNECTING)
        group.barrier().wait()
        group._set_default_timeout(PATIENCE)  # noqa: SLF001 - no public name
    workers = Workers(rank, size, group)
    del group
    try:
        yield workers
        # A process that leaves while another still receives from it makes the other fail.
        workers.meet()
    finally:
        workers.leave()


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
