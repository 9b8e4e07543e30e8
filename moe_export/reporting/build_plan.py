"""What the plan kept, and on what evidence.

Legend: R rows of a layer.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.artifacts.importance import Importance
from moe_export.artifacts.planned import prunes_shared, unpruned, widths_after, widths_before
from moe_export.errors import ArtifactError
from moe_export.experts import ExpertTable, descending, kept_rows
from moe_export.families import spec_of
from moe_export.planning.shares import active_parameters, token_shares

CURVE_FRACTIONS = (0.001, 0.0025, 0.005, *(percent / 100 for percent in range(1, 101)))
"""Where the cumulative curve is sampled: more closely at its steep beginning."""


def model_facts(prune: Path, plan: Mapping[str, Any], importance: Importance) -> dict[str, Any]:
    """Sizes of the model before and after.

    Args:
        prune: holds the `config.json` of the pruned checkpoint.
        plan: `plan.json`.
        importance: for the tokens that reached each expert.

    Raises:
        ArtifactError: `config.json` cannot be read.
    """
    after = spec_of(read_config(prune))
    before = unpruned(after, plan)
    shares = token_shares(importance.tokens_per_expert, after.top_k)
    return {
        "family": after.family.model_type,
        "layers": after.num_layers,
        "experts_per_layer": after.num_experts,
        "experts_per_token": after.top_k,
        "hidden_size": after.hidden_size,
        "vocabulary_tokens": after.vocab_size,
        "parameters": {"before": before.parameters, "after": after.parameters},
        "active_parameters_per_token": {
            "before": active_parameters(before, shares),
            "after": active_parameters(after, shares),
        },
    }


def read_config(prune: Path) -> dict[str, Any]:
    """The config of the pruned checkpoint.

    Raises:
        ArtifactError: it cannot be read.
    """
    path = prune / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}); run the prune stage again"
        ) from error
    return config


def plan_facts(prune: Path, plan: Mapping[str, Any], importance: Importance) -> dict[str, Any]:
    """The plan with the spread of its widths, and what reached each expert.

    Layers without experts are left out. The arguments are those of `model_facts`.
    """
    pruned = spec_of(read_config(prune))
    shared_before = unpruned(pruned, plan).shared_widths
    shared_expert = "prune" if prunes_shared(plan) else "keep"
    widths = list(chain.from_iterable(layer["widths"] for layer in plan["layers"]))
    before = list(chain.from_iterable(plan["widths_before"]))
    pairs = zip(widths, before, strict=True)
    layers = [
        {
            "layer": layer["layer"],
            "rows_before": layer["rows_before"],
            "rows_after": layer["rows_after"],
            "importance_kept": layer["importance_kept"],
            "width_min": min(layer["widths"]),
            "width_median": statistics.median(layer["widths"]),
            "width_max": max(layer["widths"]),
            "widths": layer["widths"],
            "widths_before": of_layer_before,
            "shared_width": pruned.shared_widths[layer["layer"]],
            "shared_width_before": shared_before[layer["layer"]],
            "tokens_per_expert": [int(tokens) for tokens in reached],
            "unknown_experts": layer["unknown_experts"],
        }
        for layer, of_layer_before, reached in zip(
            plan["layers"], plan["widths_before"], importance.tokens_per_expert, strict=True
        )
        if layer["widths"]
    ]
    return {
        "score": plan["score"],
        "scope": plan["scope"],
        "unit": plan["unit"],
        "shared_expert": shared_expert if pruned.has_shared_expert else None,
        "kept": plan["kept"],
        "rows_before": plan["rows_before"],
        "rows_after": plan["rows_after"],
        "width_min": min(widths),
        "width_median": statistics.median(widths),
        "width_max": max(widths),
        "empty_experts": widths.count(0),
        "whole_experts": sum(after == old for after, old in pairs),
        "layers": layers,
    }


def importance_facts(plan: Mapping[str, Any], importance: Importance) -> dict[str, Any]:
    """How concentrated importance is where it is known, and what was kept of it.

    Both fractions are null where no importance is known or all of it is 0.
    """
    scores = importance.scores[plan["score"]]
    known = np.concatenate([layer_R[np.isfinite(layer_R)] for layer_R in scores])
    total = float(known.sum())
    if total <= 0:
        return {"known_rows": known.size, "rows_kept": None, "importance_kept": None, "curve": []}
    kept_count, kept_sum = 0, 0.0
    pairs = zip(widths_before(plan), widths_after(plan), strict=True)
    for layer_R, (before, after) in zip(scores, pairs, strict=True):
        table = ExpertTable(tuple(before))
        for expert, rows in enumerate(kept_rows(layer_R, table, after)):
            values = layer_R[table.slice_of(expert)][rows]
            values = values[np.isfinite(values)]
            kept_count += values.size
            kept_sum += float(values.sum())
    cumulative = np.concatenate([[0.0], np.cumsum(known[descending(known)])])
    places = [round(fraction * known.size) for fraction in CURVE_FRACTIONS]
    return {
        "known_rows": known.size,
        "rows_kept": kept_count / known.size,
        "importance_kept": kept_sum / total,
        "curve": [
            {"rows": fraction, "importance": min(float(cumulative[place]) / total, 1.0)}
            for fraction, place in zip(CURVE_FRACTIONS, places, strict=True)
        ],
    }


def coverage_facts(importance: Importance) -> dict[str, Any]:
    """How many calibration tokens the experts have seen."""
    tokens = [int(count) for layer in importance.tokens_per_expert for count in layer]
    return {
        "experts": len(tokens),
        "unknown_experts": tokens.count(0),
        "tokens_per_expert_min": min(tokens),
        "tokens_per_expert_median": statistics.median(tokens),
        "tokens_per_expert_max": max(tokens),
    }
