"""Section of a report about quantization and its losses."""

from __future__ import annotations

from pathlib import Path

from moe_export.artifacts.quantization import QuantizationRecord
from moe_export.artifacts.report_making import ClassError, QuantizationFacts


def quantization_facts(folder: Path | None) -> QuantizationFacts | None:
    """Reads method, errors and fallbacks of quantization.

    Args:
        folder: folder of the quantize stage; None if nothing was quantized.
    """
    if folder is None:
        return None
    record = QuantizationRecord.load(folder)
    return QuantizationFacts(
        method=record.method,
        matrices=record.counts.quantized,
        classes=tuple(
            ClassError(name=name, relative_error=sums.relative_error)
            for name, sums in record.classes.items()
        ),
        fallbacks=record.fallbacks,
    )
