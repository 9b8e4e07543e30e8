"""The content of `report.json`, from the folders of a run; see docs/reference/report.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_export import __version__
from moe_export.artifacts.base import load_json
from moe_export.artifacts.importance import Importance
from moe_export.recipe import ReportSettings
from moe_export.reporting.build_compensation import compensation_facts
from moe_export.reporting.build_plan import (
    coverage_facts,
    importance_facts,
    model_facts,
    plan_facts,
)
from moe_export.reporting.build_quantization import quantization_facts
from moe_export.reporting.build_validation import (
    accuracy_facts,
    execution_facts,
    memory_facts,
    parity_facts,
)
from moe_export.reporting.methods import methods_of
from moe_export.reporting.units import percent
from moe_export.variants import BASELINE, ordered

STAGE_FILE = "stage.json"

_ROOTED = re.compile(r"^(?:[/~\\]|[A-Za-z]:[\\/]|\.\.?[\\/]).*[\\/]")


def build_report(folders: Mapping[str, Path], settings: ReportSettings) -> dict[str, Any]:
    """Gathers what the stages of a run have written.

    Args:
        folders: by stage name, each holding its `stage.json`.
        settings: the recipe's `report` section.

    Returns:
        Plain JSON values; the same for the same files.

    Raises:
        ArtifactError: a file is missing, damaged or of another version.
    """
    plan = load_json(folders["plan"] / "plan.json")
    importance = Importance.load(folders["importance"])
    export = load_json(folders["export"] / "export.json")
    validation = load_json(folders["validate"] / "validation.json")
    measurements = load_json(folders["validate"] / "measurements.json")
    marks = {stage: load_json(folder / STAGE_FILE) for stage, folder in folders.items()}
    used = {stage: mark["identity"]["settings"] for stage, mark in marks.items()}
    model = model_facts(folders["prune"], plan, importance)
    report = {
        "title": settings.title
        or f"{model['family']}, {percent(plan['kept'])} of expert dimensions",
        "moe_export": __version__,
        "model": model,
        "plan": plan_facts(folders["prune"], plan, importance),
        "importance": importance_facts(plan, importance),
        "coverage": coverage_facts(importance),
        "calibration": {
            key: value
            for key, value in load_json(folders["calibrate"] / "calibration.json").items()
            if key != "schema"
        },
        "memory": memory_facts(folders, plan, export, measurements),
        "compensation": compensation_facts(folders, used.get("prune", {})),
        "quantization": quantization_facts(folders),
        "accuracy": accuracy_facts(validation),
        "parity": parity_facts(validation),
        "gates": validation["gates"],
        "speed": measurements["speed"],
        "execution": execution_facts(measurements),
        "machine": measurements["machine"],
        "versions": measurements["versions"],
        "stages": [
            {
                "stage": stage,
                **mark["measured"],
                "output_bytes": sum(file["bytes"] for file in mark["files"].values()),
                "predicted": mark.get("predicted") or None,
            }
            for stage, mark in marks.items()
        ],
        "methods": methods_of(validation, used.get("validate", {})),
        "settings": used,
    }
    public: dict[str, Any] = without_folders(report)
    return {"headline": headline(public)} | public


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """The few numbers that stand at the top: the last variant against the baseline."""
    memory = {entry["variant"]: entry for entry in report["memory"]["variants"]}
    product = ordered(memory)[-1]
    scores = {entry["variant"]: entry for entry in reversed(report["accuracy"])}
    mean = {variant: scores.get(variant, {}).get("mean_exact_match") for variant in memory}
    at = headline_speed(report["speed"])
    found = {
        "product": product,
        "kept": report["plan"]["kept"],
        "baseline_weights_bytes": memory[BASELINE]["weights_bytes"],
        "product_weights_bytes": memory[product]["weights_bytes"],
        "baseline_exact_match": mean[BASELINE],
        "product_exact_match": mean[product],
        "recovery": scores.get(product, {}).get("recovery"),
        "speed_setting": at,
        "gates_passed": all(gate["passed"] for gate in report["gates"]),
    }
    for phase in ("prefill", "decode"):
        rates = {
            entry["variant"]: entry[f"{phase}_tokens_per_s"]["median"]
            for entry in report["speed"]
            if at is not None and speed_setting(entry) == at
        }
        before, after = rates.get(BASELINE), rates.get(product)
        found[f"product_{phase}_tokens_per_s"] = after
        found[f"{phase}_ratio"] = after / before if before and after else None
    return found


def speed_setting(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a speed was measured at."""
    keys = ("provider", "batch_size", "threads", "prompt_tokens", "new_tokens")
    return {key: entry[key] for key in keys}


def headline_speed(speed: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The setting that stands for all: the first provider, the smallest batch, the most threads."""
    if not speed:
        return None
    first = [entry for entry in speed if entry["provider"] == speed[0]["provider"]]
    chosen = min(first, key=lambda entry: (entry["batch_size"], -entry["threads"]))
    return speed_setting(chosen)


def without_folders(value: Any) -> Any:
    """The same value with every file named by path reduced to its name.

    A report is handed on, and the folders of the machine it was made on are nobody's business.

    >>> without_folders({"text": "/home/ann/notes.txt", "hub": "owner/name"})
    {'text': 'notes.txt', 'hub': 'owner/name'}
    """
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return _ROOTED.sub("", value) if isinstance(value, str) else value
