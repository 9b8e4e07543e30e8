"""Rows of Parquet files, read by pyarrow."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from moe_export.errors import CalibrationError, DependencyError

BATCH_ROWS = 64
"""Rows that are held at a time."""


def parquet_rows(path: Path, fields: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Parquet file.

    Args:
        path: Path of the file.
        fields: Columns to read. If the file has none of them, rows have all columns, as None.

    Raises:
        CalibrationError: The file is damaged.
        DependencyError: pyarrow is absent.
    """
    try:
        from pyarrow import ArrowException  # noqa: PLC0415 - an extra
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415
    except ImportError as error:
        raise DependencyError(
            f"{path} is Parquet, which needs the package 'pyarrow'; install moe-export[parquet], "
            "or write the rows as JSON lines"
        ) from error
    try:
        with ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            wanted = [name for name in names if name in fields]
            # Columns that are not read stand in messages about an absent field.
            absent = dict.fromkeys(names)
            if not wanted:
                yield from (absent for _ in range(file.metadata.num_rows))
                return
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                yield from (absent | row for row in batch.to_pylist())
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise CalibrationError(
            f"{path} cannot be read as Parquet ({reason}); copy it again"
        ) from error
