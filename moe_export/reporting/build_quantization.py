"""What quantization did and lost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_export.artifacts.base import load_json


def quantization_facts(folders: Mapping[str, Path]) -> dict[str, Any] | None:
    """Method, error by class of tensor, and the matrices whose method was another; None where
    nothing was quantized.
    """
    if "quantize" not in folders:
        return None
    ledger = load_json(folders["quantize"] / "quantization.json")
    return {
        "method": ledger["method"],
        "matrices": ledger["counts"]["quantized"],
        "classes": [
            {"class": name, "relative_error": sums["relative_error"]}
            for name, sums in ledger["classes"].items()
        ],
        "fallbacks": ledger["fallbacks"],
    }
