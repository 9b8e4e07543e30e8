"""Complete run folders with invented but consistent numbers, in the layout of the stages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.artifacts.calibration import CalibrationSummary
from moe_export.artifacts.documents import Documents
from moe_export.artifacts.export import Export
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.ledger import Ledger
from moe_export.artifacts.measurements import Measurements
from moe_export.artifacts.plan import Plan
from moe_export.artifacts.quantization import QuantizationRecord
from moe_export.artifacts.stage_mark import StageMark
from moe_export.artifacts.validation import Validation
from moe_export.checkpoint import write_json
from moe_export.experts import ExpertTable, descending
from moe_export.recipe import ReportSettings
from moe_export.stages import report
from moe_export.stages.job import Job
from tests.helpers.artifacts import save_json
from tests.helpers.result_artifacts import EVALUATION

STAGES = ("calibrate", "importance", "plan", "prune", "quantize", "export", "validate", "eval")

BASELINE_TASKS = {"arithmetic": 1.0, "sums": 0.995, "facts": 0.973, "strings": 0.94, "text": None}
PRUNED_TASKS = {"arithmetic": 0.99, "sums": 1.0, "facts": 0.9475, "strings": 0.93, "text": None}


def write_run(
    run: Path,
    *,
    num_layers: int = 4,
    num_experts: int = 16,
    width: int = 128,
    keep: float = 0.5,
    baseline: bool = True,
    gate_passed: bool = True,
    source: str = "arithmetic",
    seed: int = 0,
) -> dict[str, Path]:
    """Writes all stages before the report, and gives their folders."""
    folders = {stage: run / stage for stage in STAGES}
    for folder in folders.values():
        folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    shape = (num_experts, width)
    scores = [
        np.exp(rng.normal(0, 1.6, shape) + rng.normal(0.3 * layer, 1.2, (num_experts, 1))).reshape(
            -1
        )
        for layer in range(num_layers)
    ]
    tokens = [rng.integers(1, 5000, num_experts) for _ in range(num_layers)]
    tokens[0][1] = 0
    scores[0][width : 2 * width] = np.inf
    widths = _widths(scores, num_experts, width, keep)
    shares = {"fisher_margin": np.array([0.4, 0.3, 0.15, 0.145, 0.005])}
    Importance({"fisher_margin": scores}, tokens, shares).save(folders["importance"])
    _calibrate(folders["calibrate"], source)
    plan = _plan(scores, widths, width)
    save_json(folders["plan"] / Plan.FILE, plan)
    _prune(folders["prune"], plan, num_experts, width)
    _quantize(folders["quantize"])
    _export(folders["export"], plan, baseline)
    _validate(folders["validate"], plan, baseline, gate_passed)
    EVALUATION.model_copy(update={"gates": ()}).save(folders["eval"])
    for stage, folder in folders.items():
        settings: dict[str, Any] = {"seed": 0} if stage == "calibrate" else {}
        if stage == "prune":
            settings = {"distill_blocks": True}
        if stage == "validate":
            settings = {"speed": {"repeats": 5, "prompt_tokens": 128, "new_tokens": 64}}
        save_json(
            folder / StageMark.FILE,
            {
                "key": "0" * 64,
                "identity": {
                    "stage": stage,
                    "version": 1,
                    "settings": settings,
                    "outside": {},
                    "inputs": {},
                    **({"threads": 2} if stage in ("importance", "prune") else {}),
                },
                "files": {"file": {"bytes": 123_456, "sha256": "0" * 64}},
                "measured": {"wall_s": 12.345, "peak_resident_bytes": 456_000_000},
                "predicted": {
                    "wall_s": 10.0,
                    "peak_resident_bytes": 500_000_000,
                    "output_bytes": 1_000_000,
                },
                "moe_export": "0.1.0",
            },
        )
    return folders


def write_report(run: Path, title: str | None = None, **options: Any) -> dict[str, Path]:
    """Writes a run and has the report stage report on it."""
    folders = write_run(run, **options)
    out = run / "report"
    out.mkdir()
    report.run(Job(ReportSettings(title=title), run / "model", folders, out))
    return folders


def _widths(scores: list[np.ndarray], num_experts: int, width: int, keep: float) -> list[list[int]]:
    order = descending(np.concatenate(scores))
    kept = np.zeros(order.size, bool)
    kept[order[: round(keep * order.size)]] = True
    return kept.reshape(len(scores), num_experts, width).sum(-1).tolist()


def _calibrate(folder: Path, source: str) -> None:
    names = [source, "sums", "facts", "strings", "text"]
    save_json(
        folder / CalibrationSummary.FILE,
        {
            "sequences": 480,
            "tokens": 20_411,
            "seed": 0,
            "sources": [
                {
                    "name": name,
                    "sequences": 96,
                    "tokens": 4082,
                    "truncated_sequences": 0,
                    "dropped_documents": 0,
                    "bos": "tokenizer",
                    "tokens_sha256": "0" * 64,
                    "weight": None,
                }
                for name in names
            ],
        },
    )


def _plan(scores: list[np.ndarray], widths: list[list[int]], width: int) -> dict[str, Any]:
    num_experts = len(widths[0])
    rows = num_experts * width
    per_row = 3 * 128 * 4

    def sizes(layers: list[int]) -> dict[str, Any]:
        experts = [count * per_row for count in layers]
        by_class = {
            "embeddings": 1_048_576,
            "attention": 790_528,
            "router": 32_768,
            "experts": sum(experts),
            "shared_expert": 788_480,
            "norms": 4608,
            "constants": 131_072,
            "padding": 1234,
        }
        return {
            "total_bytes": sum(by_class.values()),
            "active_bytes_per_token": sum(by_class.values()) // 4,
            "by_class": by_class,
            "experts_by_layer": experts,
        }

    table = ExpertTable((width,) * num_experts)
    layers = []
    for layer, (layer_R, layer_widths) in enumerate(zip(scores, widths, strict=True)):
        known = np.where(np.isfinite(layer_R), layer_R, 0.0)
        held = 0.0
        for expert, kept in enumerate(layer_widths):
            held += float(np.sort(known[table.slice_of(expert)])[::-1][:kept].sum())
        layers.append(
            {
                "layer": layer,
                "widths": layer_widths,
                "rows_before": rows,
                "rows_after": sum(layer_widths),
                "importance_kept": held / float(known.sum()),
                "unknown_experts": [1] if layer == 0 else [],
                "expert_bytes": {"float32": sum(layer_widths) * per_row},
            }
        )
    after = sum(map(sum, widths))
    return {
        "score": "fisher_margin",
        "scope": "model",
        "unit": "dimension",
        "rows_before": rows * len(widths),
        "rows_after": after,
        "kept": after / (rows * len(widths)),
        "widths_before": [[width] * num_experts for _ in widths],
        "layers": layers,
        "checkpoint_tensor_bytes": 4_444_444,
        "predicted_loss": None,
        "export_bytes": {
            "float32": {
                "before": sizes([rows] * len(widths)),
                "after": sizes([sum(layer) for layer in widths]),
                "before_quantized": sizes([rows // 4] * len(widths)),
            }
        },
    }


def _prune(folder: Path, plan: dict[str, Any], num_experts: int, width: int) -> None:
    widths = [layer["widths"] for layer in plan["layers"]]
    config = {
        "model_type": "moe_export_qwen2_moe",
        "vocab_size": 1024,
        "hidden_size": 128,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": 128,
        "num_hidden_layers": len(widths),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": num_experts,
        "num_experts_per_tok": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "decoder_sparse_step": 1,
        "expert_widths": widths,
    }
    write_json(folder / "config.json", config)
    counts = {"kept": 51, "sliced": 3 * num_experts * len(widths), "dropped": 0}
    fitted = {
        "refit": {
            "experts": 60,
            "tensors": ["down"] * 60,
            "left": [{"tensor": "down", "tokens": 3}],
            "blocks": [
                {"layer": 0, "pruned": 0.5, "refit": 0.25, "distilled": 0.125},
                {"layer": 1, "pruned": 0.75, "refit": 0.5, "distilled": 0.625},
            ],
        },
        "distill": {
            "tensors": ["router"] * len(widths),
            "tokens": 14_536,
            "held_out_tokens": 1684,
            "held_out_kl_nats": {"before": 0.117, "after": 0.104},
        },
    }
    ledger = {"tensor_bytes": 4_444_444, "counts": counts, **fitted, "tensors": {}}
    save_json(folder / Ledger.FILE, ledger)


def _quantize(folder: Path) -> None:
    """A ledger alone: no quantized variant is among the exported ones."""
    classes = {
        name: {
            "tensors": 102,
            "elements": 51_200,
            "code_bytes": 25_600,
            "scale_bytes": 3200,
            "relative_error": error,
        }
        for name, error in (("experts", 0.0912), ("shared_expert", 0.0834))
    }
    fallback = {
        "tensor": "model.layers.0.mlp.experts.1.up_proj.weight",
        "layer": 0,
        "expert": 1,
        "method": "mse",
        "tokens": 0,
        "inputs": 128,
    }
    save_json(
        folder / QuantizationRecord.FILE,
        {
            "experts": "int4",
            "dense": "float",
            "embedding": "float",
            "group_size": 32,
            "method": "gptq",
            "tensor_bytes": 1_234_567,
            "tensors": {},
            "counts": {"kept": 51, "quantized": 204},
            "classes": classes,
            "fallbacks": [fallback],
        },
    )


def _export(folder: Path, plan: dict[str, Any], baseline: bool) -> None:
    sides = {"baseline": "before", "pruned": "after"} if baseline else {"pruned": "after"}
    variants = {}
    for variant, side in sides.items():
        (folder / variant).mkdir()
        weights = dict(plan["export_bytes"]["float32"][side])
        del weights["active_bytes_per_token"]
        # Sparse files: the size is all that a report looks at.
        with (folder / variant / "model.onnx.data").open("wb") as file:
            file.truncate(weights["total_bytes"])
        (folder / variant / "model.onnx").write_bytes(bytes(34_567))
        variants[variant] = {
            "nodes": 101,
            "weights": weights,
            "data_bytes": weights["total_bytes"],
            "graph_bytes": 34_567,
            "quantization": None,
        }
    save_json(folder / Export.FILE, {"dtype": "float32", "variants": variants})


def _validate(folder: Path, plan: dict[str, Any], baseline: bool, gate_passed: bool) -> None:
    variants = {"pruned": _scores(PRUNED_TASKS, 3.3712)}
    recovery = None
    if baseline:
        variants = {"baseline": _scores(BASELINE_TASKS, 3.3158), **variants}
        for scores in variants["pruned"]["tasks"].values():
            scores |= {"kl_nats": 0.0213, "top1_agreement": 0.987}
        rates = [PRUNED_TASKS[n] / r for n, r in BASELINE_TASKS.items() if r]  # type: ignore[operator]
        recovery = sum(rates) / len(rates)
    gates = [
        {
            "name": "max_logit_error",
            "provider": "cpu",
            "limit": 1e-4,
            "value": 5.1e-6,
            "passed": True,
        },
        {
            "name": "min_greedy_agreement",
            "provider": "cpu",
            "limit": 1.0,
            "value": 1.0 if gate_passed else 0.75,
            "passed": gate_passed,
        },
    ]
    save_json(
        folder / Validation.FILE,
        {
            "providers": {
                "cpu": {
                    "parity": {
                        "pruned": {
                            "max_logit_error": 5.1e-6,
                            "tokens": 1234,
                            "kl_nats": 1.3e-12,
                            "top1_agreement": 1.0,
                            "first_bad_layer": None,
                        }
                    },
                    "greedy": {"pruned": {"prompts": 4, "new_tokens": 64, "agreement": 1.0}},
                    "variants": variants,
                    "answer_ends": {"facts": {"documents": 64, "foreseen": 3, "required": False}},
                }
            },
            "recovery": recovery,
            "gates": gates,
            "warning": {
                "name": "default_max_kl_nats",
                "provider": "cpu",
                "limit": 0.01,
                "value": 0.0213,
                "passed": False,
            },
        },
    )
    documents = {
        variant: {name: _documents(task) for name, task in of["tasks"].items()}
        for variant, of in variants.items()
    }
    save_json(folder / Documents.FILE, {"providers": {"cpu": documents}})
    save_json(
        folder / Measurements.FILE,
        {
            "machine": {
                "cpu": "Imaginary CPU 3000 @ 2.5 GHz",
                "cores": 2,
                "memory_bytes": 8 << 30,
                "gpu": None,
                "system": "Linux 6.1 x86_64",
            },
            "versions": {"python": "3.11.9", "onnxruntime": "1.32.0", "torch": "2.13.0"},
            "speed": [
                _speed(variant, batch, threads)
                for variant in variants
                for threads in (1, 2)
                for batch in (1, 8)
            ],
            "memory": [
                {
                    "variant": variant,
                    "provider": "cpu",
                    "file_bytes": 10_000_000,
                    "load_peak_bytes": 21_000_000 if variant == "baseline" else 13_000_000,
                    "steady_resident_bytes": 18_000_000 if variant == "baseline" else 11_000_000,
                }
                for variant in variants
            ],
        },
    )


def _scores(rates: dict[str, float | None], text_loss: float) -> dict[str, Any]:
    tasks = {}
    for name, rate in rates.items():
        loss = text_loss if rate is None else 0.0123
        tasks[name] = {
            "items": 200,
            "answer_tokens": 1600,
            "exact_match": rate,
            "exact_match_stderr": None if rate is None else math.sqrt(rate * (1 - rate) / 200),
            "loss_nats": loss,
            "perplexity": math.exp(loss),
        }
    known = [rate for rate in rates.values() if rate is not None]
    return {"tasks": tasks, "mean_exact_match": sum(known) / len(known)}


def _documents(task: dict[str, Any]) -> dict[str, Any]:
    """Each of eight tokens, the first of them right."""
    items, kl_nats = task["items"], task.get("kl_nats")
    right = round(items * (task["exact_match"] or 0))
    return {
        "tokens": [8] * items,
        "matches": [number < right for number in range(items)],
        "kl_nats": [] if kl_nats is None else [8 * kl_nats] * items,
    }


def _speed(variant: str, batch: int, threads: int) -> dict[str, Any]:
    decode = 410.0 * (1.62 if variant == "pruned" else 1) * batch**0.6 * threads**0.4
    prefill = 5200.0 * (1.41 if variant == "pruned" else 1) * batch**0.2 * threads**0.8
    return {
        "variant": variant,
        "provider": "cpu",
        "batch_size": batch,
        "threads": threads,
        "prompt_tokens": 128,
        "new_tokens": 64,
        "prefill_tokens_per_s": {"min": 0.93 * prefill, "median": prefill, "max": 1.05 * prefill},
        "decode_tokens_per_s": {"min": 0.95 * decode, "median": decode, "max": 1.02 * decode},
        "path": "portable function body",
    }
