"""What was fitted to make up for what was removed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_export.artifacts.base import load_json


def compensation_facts(
    folders: Mapping[str, Path], settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Experts refitted, and what distilling routers did; None where neither was asked for.

    Args:
        folders: by stage name.
        settings: of the prune stage.
    """
    ledger = load_json(folders["prune"] / "ledger.json")
    refit = None
    if settings.get("refit_down"):
        refit = {"experts": len(ledger["refit"]["tensors"]), "left": len(ledger["refit"]["left"])}
    distill = ledger.get("distill")
    if distill is not None:
        distill = distill | {"routers": len(distill["tensors"])}
        del distill["tensors"]
    return {"refit": refit, "distill": distill} if refit or distill else None
