"""A grid of widths and formats from one calibration: bytes against accuracy against speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe_export.artifacts.base import load_json, save_json
from moe_export.recipe import SweepSettings
from moe_export.reporting.build import headline_speed, speed_setting
from moe_export.reporting.sweep_table import sweep_html, sweep_markdown
from moe_export.reporting.sweep_verdicts import verdicts
from moe_export.stages.job import Job
from moe_export.variants import BASELINE, PLANNED, ordered

SWEEP_FILE = "sweep.json"
SWEEP_TABLE = "sweep.md"
SWEEP_PAGE = "sweep.html"


def run(job: Job[SweepSettings]) -> None:
    """Writes `sweep.json`, and its table and picture as `sweep.md` and `sweep.html`."""
    folders: dict[str, dict[str, Path]] = {}
    for name, folder in job.folders.items():
        point, _, stage = name.rpartition("/")
        folders.setdefault(point, {})[stage] = folder
    points, baseline, at = [], None, None
    documents: dict[str, Any] = {}
    for name, of in folders.items():
        found = _measured(name, of)
        baseline = baseline or found.pop(BASELINE)
        at = at or found["speed_setting"]
        found.pop(BASELINE, None)
        documents[name] = found.pop("documents")
        points.append(found)
    measurements = load_json(next(iter(folders.values()))["validate"] / "measurements.json")
    assert baseline is not None
    outcome = {
        "baseline": baseline,
        "points": points,
        "verdicts": verdicts(points, baseline["weights_bytes"], documents),
        "documents": {
            task: len(found["tokens"]) for task, found in next(iter(documents.values())).items()
        },
        "speed_setting": at,
        "machine": measurements["machine"],
        "versions": measurements["versions"],
    }
    save_json(job.out / SWEEP_FILE, outcome)
    (job.out / SWEEP_TABLE).write_text(sweep_markdown(outcome), encoding="utf-8")
    (job.out / SWEEP_PAGE).write_text(sweep_html(outcome), encoding="utf-8")


def _measured(name: str, folders: dict[str, Path]) -> dict[str, Any]:
    """One point, with the unpruned model under `baseline` where it was exported too."""
    plan = load_json(folders["plan"] / "plan.json")
    export = load_json(folders["export"] / "export.json")
    validation = load_json(folders["validate"] / "validation.json")
    measurements = load_json(folders["validate"] / "measurements.json")
    documents = load_json(folders["validate"] / "documents.json")
    scores = next(iter(validation["providers"].values()))["variants"]
    at = headline_speed(measurements["speed"])
    planned = plan["export_bytes"][export["dtype"]]
    facts: dict[str, dict[str, Any]] = {}
    for variant in ordered(scores):
        tasks = scores[variant]["tasks"]
        kl = [score["kl_nats"] for score in tasks.values() if score.get("kl_nats") is not None]
        speed = [
            entry
            for entry in measurements["speed"]
            if entry["variant"] == variant and speed_setting(entry) == at
        ]
        facts[variant] = {
            "weights_bytes": export["variants"][variant]["data_bytes"],
            "active_bytes_per_token": planned[PLANNED[variant]]["active_bytes_per_token"],
            "mean_exact_match": scores[variant]["mean_exact_match"],
            "mean_kl_nats": sum(kl) / len(kl) if kl else None,
            "tasks": {
                task: {key: score[key] for key in ("exact_match", "loss_nats")}
                for task, score in tasks.items()
            },
            "decode_tokens_per_s": speed[0]["decode_tokens_per_s"]["median"] if speed else None,
        }
    before = facts.pop(BASELINE, None)
    last = ordered(facts)[-1]
    product = facts[last]
    rate, reference = product["decode_tokens_per_s"], (before or {}).get("decode_tokens_per_s")
    *_, experts = name.split("-")
    return {
        "name": name,
        "experts": experts,
        "formats": plan.get("quantization", {}).get("experts", "float"),
        "kept": plan["kept"],
        **product,
        # Measured one after the other, so that other work on the machine meets both.
        "decode_ratio": rate / reference if rate and reference else None,
        "speed_setting": at,
        "documents": next(iter(documents["providers"].values()))[last],
        **({BASELINE: before} if before else {}),
    }
