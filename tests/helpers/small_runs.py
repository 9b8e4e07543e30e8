"""Recipe over a tiny random checkpoint that takes a few seconds, and ways to run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from moe_export.artifacts.stage_mark import StageMark

MEASURED = ("measurements.json", "report.json", "report.md", "report.html", "run.json")
"""Files that hold times, memory or versions, and so differ between runs."""


def recipe(model: Path, /, **sections: Any) -> dict[str, Any]:
    """Recipe of all stages with small settings."""
    base: dict[str, Any] = {
        "model": {"source": str(model)},
        "calibrate": {
            "sources": [{"demo": "sums"}, {"demo": "strings"}],
            "sequences": 8,
            "sequence_length": 64,
        },
        "plan": {"keep": 0.5, "score": "fisher_margin"},
        # Steps of Adam take seconds; tests/fitting and the demo's recipes have them.
        "prune": {"distill_blocks": False},
        "quantize": {"experts": "int4", "dense": "int8"},
        "validate": {
            "tasks": [{"demo": "sums", "items": 4}, {"demo": "strings", "items": 3}],
            "sequence_length": 64,
            "greedy_tokens": 6,
            "greedy_prompts": 2,
            "speed": {
                "batch_sizes": [1],
                "threads": [1],
                "prompt_tokens": 8,
                "new_tokens": 2,
                "repeats": 1,
            },
            # A random model is less certain of its next token than a trained one, so the rounding
            # of activations changes more; tests/stages/test_quantize.py compares without rounding.
            "gates": {"max_quantized_kl_nats": 0.05, "min_quantized_top1_agreement": 0.9},
        },
    }
    return base | sections


def write_recipe(directory: Path, model: Path, /, **sections: Any) -> Path:
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(model, **sections)))
    return path


def artifacts(run: Path) -> dict[str, bytes]:
    """Content of the files that must be equal in every run, by path in the run directory."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if not path.is_file() or path.name in MEASURED or path.name == ".lock":
            continue
        if path.parent.name == "cards":  # with the memory and speed of this run
            continue
        if path.name == StageMark.FILE:
            mark = json.loads(path.read_text())
            mark.pop("measured")
            mark["files"] = {
                n: f
                for n, f in mark["files"].items()
                if n not in MEASURED and not n.startswith("cards/")
            }
            found[name] = json.dumps(mark).encode()
        else:
            found[name] = path.read_bytes()
    return found
