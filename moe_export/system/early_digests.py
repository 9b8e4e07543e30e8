"""Digests of the files of a folder, computed while others are still being written into it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_export.system.digests import Digests
from moe_export.system.files import entries, sync

INTERVAL_S = 0.5
"""Time between two looks at the folder."""

LEAST_BYTES = 16 << 20
"""Size below which a file can as well be read at the end."""


@contextmanager
def early_digests(digests: Digests, folder: Path) -> Iterator[None]:
    """Syncs large files of a folder and computes their digests in the background.

    A file is taken when nobody has written to it for longer than the resolution of its times. If it
    changes after all, its digest is computed again when it is asked for.

    Args:
        digests: Digests that remember what is computed.
        folder: Folder that fills meanwhile.
    """
    end = threading.Event()
    looking = threading.Thread(target=_look, args=(digests, folder, end), daemon=True)
    looking.start()
    try:
        yield
    finally:
        end.set()
        looking.join()


def _look(digests: Digests, folder: Path, end: threading.Event) -> None:
    """Takes one file after another until the end; a file that is gone or unreadable is left."""
    while not end.wait(INTERVAL_S):
        with contextlib.suppress(OSError):
            for path in list(entries(folder)):
                if end.is_set():
                    return
                if _is_due(digests, path):
                    sync(path)
                    digests.of([path], as_written=True)


def _is_due(digests: Digests, path: Path) -> bool:
    is_large = path.is_file() and path.stat().st_size >= LEAST_BYTES
    return is_large and digests.can_keep(path)
