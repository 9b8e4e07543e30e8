"""What the exported models were found to be worth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_export.artifacts.base import load_json
from moe_export.errors import ArtifactError
from moe_export.families import spec_of
from moe_export.formats import GRIDS
from moe_export.ort.benchmark import PORTABLE_PATH
from moe_export.ort.predicted_memory import folded_bytes, kv_cache_bytes, predicted_resident
from moe_export.reporting.build_plan import read_config
from moe_export.variants import BASELINE, PLANNED, ordered

DATA_FILE = "model.onnx.data"
MODEL_FILE = "model.onnx"
DEVICE_KEYS = ("device_loaded_bytes", "device_peak_bytes", "device_kv_cache_bytes")


def memory_facts(
    folders: Mapping[str, Path],
    plan: Mapping[str, Any],
    export: Mapping[str, Any],
    measurements: Mapping[str, Any],
) -> dict[str, Any]:
    """Bytes predicted by the plan, found on disk, and held by a process; per variant.

    The unpruned model is always among the variants; what was not exported is null.
    """
    predicted = plan["export_bytes"][export["dtype"]]
    names = {BASELINE, *export["variants"], *(entry["variant"] for entry in measurements["memory"])}
    paths = {(entry["variant"], entry["path"]) for entry in measurements["speed"]}
    variants = []
    for variant in ordered(names):
        folder = folders["export"] / variant
        planned = predicted.get(PLANNED.get(variant))
        planned_bytes = planned["total_bytes"] if planned else None
        written = export["variants"].get(variant)
        on_disk = _size(folder / DATA_FILE) if written else None
        by_class = (written["weights"] if written else planned)["by_class"]
        folds = (variant, PORTABLE_PATH) in paths and written and written["quantization"]
        variants.append(
            {
                "variant": variant,
                "format": _format(written, export["dtype"]),
                "weights_bytes": on_disk if written else planned_bytes,
                "predicted_weights_bytes": planned_bytes,
                "disk_weights_bytes": on_disk,
                "active_bytes_per_token": planned["active_bytes_per_token"] if planned else None,
                "graph_bytes": _size(folder / MODEL_FILE) if written else None,
                "nodes": written["nodes"] if written else None,
                "classes": [
                    {"class": name, "weights_bytes": count} for name, count in by_class.items()
                ],
                "predicted_resident_bytes": predicted_resident(sum(by_class.values()))
                + (folded_bytes(spec_of(read_config(folder))) if folds else 0),
                "resident": [
                    {
                        key: entry[key]
                        for key in ("provider", "load_peak_bytes", "steady_resident_bytes")
                    }
                    | {key: entry.get(key) for key in DEVICE_KEYS}
                    for entry in measurements["memory"]
                    if entry["variant"] == variant
                ],
            }
        )
    ledger = load_json(folders["prune"] / "ledger.json")
    spec = spec_of(read_config(folders["prune"]))
    both = predicted.get("before_quantized")
    return {
        "dtype": export["dtype"],
        "variants": variants,
        "unpruned_quantized": {
            "weights_bytes": both["total_bytes"] if both else None,
            "active_bytes_per_token": both["active_bytes_per_token"] if both else None,
            "classes": [
                {"class": name, "weights_bytes": count} for name, count in both["by_class"].items()
            ]
            if both
            else [],
        },
        "kv_cache": {
            "context_tokens": spec.max_positions,
            "cache_bytes": kv_cache_bytes(spec, export["dtype"], spec.max_positions),
            "bytes_per_token": kv_cache_bytes(spec, export["dtype"], 1),
        },
        "checkpoint": {
            "predicted_tensor_bytes": plan["checkpoint_tensor_bytes"],
            "tensor_bytes": ledger["tensor_bytes"],
            "tensors_kept": ledger["counts"]["kept"],
            "tensors_sliced": ledger["counts"]["sliced"],
            "tensors_dropped": ledger["counts"]["dropped"],
        },
    }


def accuracy_facts(validation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores by provider and variant, with the variant's recovery."""
    found = []
    for provider, result in validation["providers"].items():
        variants = result["variants"]
        for variant in ordered(variants):
            tasks = variants[variant]["tasks"]
            found.append(
                {
                    "provider": provider,
                    "variant": variant,
                    "mean_exact_match": variants[variant]["mean_exact_match"],
                    "recovery": recovery_of(tasks, variants.get(BASELINE, {}).get("tasks", {})),
                    "tasks": [
                        {"task": name} | {"kl_nats": None, "top1_agreement": None} | scores
                        for name, scores in tasks.items()
                    ],
                }
            )
    return found


def recovery_of(tasks: Mapping[str, Any], baseline: Mapping[str, Any]) -> float | None:
    """Mean over the tasks that the baseline can do: the match rate divided by the baseline's."""
    rates = [
        scores["exact_match"] / baseline[name]["exact_match"]
        for name, scores in tasks.items()
        if name in baseline and baseline[name]["exact_match"]
    ]
    return sum(rates) / len(rates) if rates else None


def parity_facts(validation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How near the exported models are to torch, by provider and variant; greedy figures null
    without prompts.
    """
    found = []
    for provider, result in validation["providers"].items():
        for variant in ordered(result["parity"]):
            parity, greedy = result["parity"][variant], result["greedy"][variant] or {}
            found.append(
                {
                    "provider": provider,
                    "variant": variant,
                    "max_logit_error": parity["max_logit_error"],
                    "kl_nats": parity["kl_nats"],
                    "top1_agreement": parity["top1_agreement"],
                    "compared_tokens": parity["tokens"],
                    "first_bad_layer": parity["first_bad_layer"],
                    "greedy_prompts": greedy.get("prompts"),
                    "greedy_new_tokens": greedy.get("new_tokens"),
                    "greedy_agreement": greedy.get("agreement"),
                }
            )
    return found


def execution_facts(measurements: Mapping[str, Any]) -> list[dict[str, str]]:
    """Which implementation of the experts ran, for every variant and provider that was timed."""
    seen = {
        (entry["variant"], entry["provider"], entry["path"]): None
        for entry in measurements["speed"]
    }
    order = ordered(variant for variant, _, _ in seen)
    return [
        {"variant": variant, "provider": provider, "path": path}
        for variant, provider, path in sorted(seen, key=lambda key: order.index(key[0]))
    ]


def _format(written: Mapping[str, Any] | None, dtype: str) -> str:
    """What a variant's weights are stored in, in words."""
    quantization = written["quantization"] if written else None
    if quantization is None:
        return dtype
    own_head = "lm_head" in quantization
    words = {
        "experts": "experts",
        "dense": "attention" if own_head else "attention and lm_head",
        "lm_head": "lm_head",
        "embedding": "embeddings",
    }
    parts = [
        f"{name} {_words(quantization[key])}"
        for key, name in words.items()
        if quantization.get(key, "float") != "float"
    ]
    written_in = [quantization.get(key, "float") for key in words]
    found = {word for of in written_in for word in ([of] if isinstance(of, str) else of)}
    groups = f" in groups of {quantization['group_size']}" if found & GRIDS.keys() else ""
    return f"{', '.join(parts)}{groups}, else {dtype}"


def _words(found: str | list[str]) -> str:
    """A format, or how many layers have each.

    >>> _words("int8"), _words(["int4", "int4", "int8"])
    ('int8', 'int4 in 2 layers, int8 in 1 layer')
    """
    if isinstance(found, str):
        return found
    counts = ((word, found.count(word)) for word in dict.fromkeys(found))
    return ", ".join(f"{word} in {n} layer{'s' if n > 1 else ''}" for word, n in counts)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{path} is missing; run the export stage again") from error
