"""The main job at full size on a small machine: memory and time of every stage, and what comes out.

    python -m tools.pages.full_size HOME [--layers N]
    python -m tools.pages.full_size HOME --dense
    python -m tools.pages.full_size HOME --workers

Makes a checkpoint of the shapes of Qwen1.5-MoE-A2.7B (28.6 GB of random weights) and a recipe in
HOME, carries it out, one process for each stage, times `cp` there, and writes docs/results/full_size.md and
docs/results/data/full_size.json. What is there already is not made again, so that it can be interrupted. It
needs about 57 GB of disk for all 24 layers; the run can be removed after.

With `--dense` it goes on from there: it exports the same model with nothing removed, in the same
formats, lets both decode in turn, and adds their speeds to the two files. That needs about 46 GB
beside the checkpoint and `run/export`, all that is left of the first part to be kept.

With `--workers` it scores three layers of the same shapes by one process and by two, one thread
each, and adds their times. That needs 5 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from moe_export.artifacts.base import load_json
from moe_export.checkpoint import Checkpoint
from moe_export.families import spec_of
from moe_export.families.base import ModelSpec
from moe_export.families.stored import format_in
from moe_export.formats import GRIDS
from moe_export.quantization import KEYS as QUANTIZED_KEYS
from moe_export.quantization import Quantization
from moe_export.recipe.load import load_recipe
from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from moe_export.reporting.units import count, figures, seconds, size
from moe_export.runner.estimate import estimate
from moe_export.runner.run import file_sha256
from moe_export.stages import MAIN_JOB
from moe_export.system.machine import machine, versions
from moe_export.testing.synthetic_checkpoint import config_of, make
from tools.pages.demo_compare import rounded

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "full_size.json"
FAMILY, SIZE = "qwen2_moe", "qwen1.5-moe-a2.7b"
PAGES = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs/reference/report.md",
    "docs/reference/operator.md",
)
COPIED_STAGES = ("prune", "quantize", "export")

RECIPE = Template("""\
model: {source: $checkpoint}
calibrate:
  sources: [{text: $text}]
  sequences: 16
  sequence_length: 512
importance: {scores: [fisher_margin], batch_tokens: 2048, dtype: bfloat16}
plan: {keep: 0.5, multiple_of: 32}
quantize: {experts: int4, dense: int8}
export: {dtype: float16, baseline: false, pruned: false}
validate:
  tasks: [{text: $text, items: 2}]
  sequence_length: 64
  greedy_tokens: 8
  greedy_prompts: 1
  speed: {threads: [2], prompt_tokens: 32, new_tokens: 16, repeats: 2}
""")

WORKERS_LAYERS, WORKERS_SEQUENCES, WORKERS_TURNS = 3, 32, 2

UNPRUNED = {
    "calibrate.sequences": 1,
    "importance.scores": "[magnitude]",
    "plan": "{keep: 1.0, score: magnitude}",
}
"""Changes to the recipe with which nothing is removed, and no gradient computed."""

PAGE = Template("""\
# Full size on a small machine

`python -m tools.pages.full_size HOME` made this page and [full_size.json](full_size.json). The model has
the config and the shapes of Qwen1.5-MoE-A2.7B, $layers of 24 layers, $checkpoint_gb GB in bfloat16;
its weights are random, so that nothing here says anything about accuracy. Calibration: $tokens
tokens of this repository's documents. Recipe: half of all expert dimensions kept, importance in
bfloat16, experts in int4, attention and lm_head in int8, everything else in float16. $machine.

$stages

Each stage is a process of its own. Times are wall times, on a machine that other work may have used
as well. A prediction is what `--dry-run` says before the run, from the config alone; it stands for
two idle cores. `cp` was timed at the end, with one shard: where other work came and went meanwhile,
it says little about the stages before.

$checks
""")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("home", type=Path, help="a directory for everything; is created")
    parser.add_argument("--layers", type=int, help="as many of the 24 layers (default: all)")
    parser.add_argument("--dense", action="store_true", help="the second part: dense decoding")
    parser.add_argument("--workers", action="store_true", help="the third part: two processes")
    given = parser.parse_args()
    home = given.home.absolute()
    if given.dense:
        found = json.loads(FIGURES.read_text(encoding="utf-8")) | {"turns": against_dense(home)}
    elif given.workers:
        found = json.loads(FIGURES.read_text(encoding="utf-8")) | {"workers": shared_out(home)}
    else:
        prepare(home, given.layers)
        for stage in MAIN_JOB:
            carry_out(home / "recipe.yaml", home / "run", stage)
        found = collect(home)
    found = rounded(found)
    FIGURES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    FIGURES.with_suffix(".md").write_text(page(found), encoding="utf-8")


def carry_out(
    recipe: Path, run: Path, stage: str, changes: Mapping[str, Any] | None = None
) -> None:
    """The job up to a stage, in a process of its own."""
    command = ["run", str(recipe), "--run", str(run), "--until", stage]
    for key, value in (changes or {}).items():
        command += ["--set", f"{key}={value}"]
    done = subprocess.run([sys.executable, "-m", "moe_export", *command], check=False)
    # 5: the limits that the recipe has by default are for trained weights.
    if done.returncode not in (0, 5):
        sys.exit(f"full_size: the stage {stage} failed; the same command goes on from there")


def against_dense(home: Path) -> dict[str, Any]:
    """Speeds of the pruned and of the unpruned model, which decode random tokens in turn."""
    carry_out(home / "recipe.yaml", home / "dense", "export", UNPRUNED)
    variants = [
        f"{name}={home / run / 'export' / 'quantized'}"
        for name, run in (("pruned", "run"), ("dense", "dense"))
    ]
    out = home / "turns.json"
    options = ["--threads", "2", "--batch", "1", "--repeats", "5", "--out", str(out)]
    script = str(ROOT / "tools" / "bench_session.py")
    subprocess.run([sys.executable, script, *variants, *options], check=True)
    turns_found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return turns_found


def shared_out(home: Path) -> dict[str, Any]:
    """Seconds that one process and two take to score three layers, and whether to the same bytes.

    Each has one thread; they take turns, and the median of their times is given.
    """
    home = home / "workers"
    prepare(home, WORKERS_LAYERS)
    times: dict[int, list[float]] = {1: [], 2: []}
    digests = set()
    for turn in range(WORKERS_TURNS):
        for processes, found in times.items():
            run = home / f"{processes}-{turn}"
            launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            command = [sys.executable, "-m", *launcher, "-m", "moe_export", "run"]
            command += [str(home / "recipe.yaml"), "--directory", str(run), "--until", "plan"]
            command += ["--set", f"calibrate.sequences={WORKERS_SEQUENCES}"]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            mark = load_json(run / "importance" / "stage.json")
            found.append(mark["measured"]["wall_s"])
            files = ("importance/importance.safetensors", "plan/plan.json")
            digests.add(tuple(file_sha256(run / name) for name in files))
    return {
        "layers": WORKERS_LAYERS,
        "tokens": load_json(run / "calibrate" / "calibration.json")["tokens"],
        "wall_s": {str(processes): median(found) for processes, found in times.items()},
        "same_bytes": len(digests) == 1,
    }


def prepare(home: Path, layers: int | None) -> None:
    """The checkpoint, the text and the recipe, as far as they are not there."""
    home.mkdir(parents=True, exist_ok=True)
    checkpoint, text = home / "checkpoint", home / "text.txt"
    if not checkpoint.exists():
        make(config_of(FAMILY, SIZE, layers), checkpoint)
    if not text.exists():
        pages = [(ROOT / name).read_text(encoding="utf-8") for name in PAGES]
        text.write_text("".join(pages), encoding="utf-8")
    recipe = RECIPE.substitute(checkpoint=checkpoint, text=text)
    (home / "recipe.yaml").write_text(recipe, encoding="utf-8")


def collect(home: Path) -> dict[str, Any]:
    """All figures of a finished run."""
    run = home / "run"
    marks = {stage: load_json(run / stage / "stage.json") for stage in MAIN_JOB}
    recipe = load_recipe(home / "recipe.yaml")
    predicted = {e.stage: e.as_dict() for e in estimate(recipe, home / "checkpoint")}
    stages = {
        stage: {
            "predicted": predicted[stage],
            "wall_s": mark["measured"]["wall_s"],
            "peak_resident_bytes": mark["measured"]["peak_resident_bytes"],
            "output_bytes": sum(file["bytes"] for file in mark["files"].values()),
        }
        for stage, mark in marks.items()
    }
    checkpoint = Checkpoint(home / "checkpoint")
    spec = spec_of(checkpoint.config)
    measurements = load_json(run / "validate" / "measurements.json")
    validation = load_json(run / "validate" / "validation.json")
    copied = copy_rate(home)
    checkpoint_bytes = sum(info.size_bytes for info in checkpoint.tensors.values())
    read = checkpoint_bytes + sum(stages[s]["output_bytes"] for s in COPIED_STAGES[:-1])
    moved = read + sum(stages[s]["output_bytes"] for s in COPIED_STAGES)
    plan = load_json(run / "plan" / "plan.json")
    kept = replace(spec, widths=tuple(tuple(layer["widths"]) for layer in plan["layers"]))
    settings = marks["quantize"]["identity"]["settings"]
    formats = Quantization(**{key: settings[key] for key in QUANTIZED_KEYS if key in settings})
    return {
        "machine": machine(),
        "versions": versions(),
        "layers": spec.num_layers,
        "checkpoint_bytes": checkpoint_bytes,
        "calibration_tokens": load_json(run / "calibrate" / "calibration.json")["tokens"],
        "kept": plan["kept"],
        "stages": stages,
        "copy": {
            "bytes_per_s": copied,
            "moved_bytes": moved,
            # A copied byte is read and written.
            "cp_s": moved / 2 / copied,
            "stages_s": sum(stages[s]["wall_s"] for s in COPIED_STAGES),
        },
        "model": measurements["memory"][-1] | {"speed": measurements["speed"]},
        "parity": validation["providers"]["cpu"]["parity"]["quantized"],
        "greedy": validation["providers"]["cpu"]["greedy"]["quantized"],
        "read_per_token_bytes": {
            "float16": {"dense": per_token(spec), "pruned": per_token(kept)},
            "quantized": {
                "dense": per_token(replace(spec, quantization=formats)),
                "pruned": per_token(replace(kept, quantization=formats)),
            },
            "quantized, experts as in calibration": as_chosen(plan),
        },
    }


def as_chosen(plan: Mapping[str, Any]) -> dict[str, int]:
    """The same with experts chosen as in calibration, where those that many tokens go to are pruned
    less.
    """
    found = plan["export_bytes"]["float16"]
    names = {"dense": "before_quantized", "pruned": "quantized"}
    return {key: found[name]["active_bytes_per_token"] for key, name in names.items()}


def per_token(spec: ModelSpec) -> float:
    """Bytes of weights that decoding one token reads, if tokens go to all experts alike."""
    total = 0.0
    for name, tensor in spec.tensors.items():
        share = spec.top_k / spec.num_experts if tensor.expert is not None else 1
        if tensor.role != "embedding" or spec.tied_embeddings:
            bits = bits_of(format_in(spec, name), spec.quantization.group_size)
            total += tensor.elements * bits / 8 * share
    return total


def bits_of(format_name: str | None, group_size: int) -> float:
    """Bits that a weight takes, with its share of a group's scale and zero point; of float16 if
    there is no format.
    """
    if format_name is None:
        return 16
    grid = GRIDS[format_name]
    return grid.storage_bits + (16 + grid.storage_bits * grid.has_zero_point) / group_size


def copy_rate(home: Path) -> float:
    """Bytes per second of `cp` with a shard that is not in the page cache, to the disk."""
    source = min((home / "checkpoint").glob("*.safetensors"))
    target = home / "copy"
    with source.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.monotonic()
    subprocess.run(["cp", source.resolve(), target], check=True)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    rate = source.stat().st_size / (time.monotonic() - started)
    target.unlink()
    return rate


def page(found: Mapping[str, Any]) -> str:
    """docs/results/full_size.md, from the figures alone."""
    rows = []
    for stage, facts in found["stages"].items():
        predicted = facts["predicted"]
        rows.append(
            [
                stage,
                *(
                    f"{shown(predicted.get(key))} / {shown(facts[key])}"
                    for key, shown in (
                        ("peak_resident_bytes", size),
                        ("wall_s", seconds),
                        ("output_bytes", size),
                    )
                ),
            ]
        )
    head = ["stage, predicted / found", "peak resident memory", "time", "output"]
    cpu = found["machine"]
    memory = size(cpu["memory_bytes"])
    return PAGE.substitute(
        layers=found["layers"],
        checkpoint_gb=f"{found['checkpoint_bytes'] / 1e9:.1f}",
        tokens=count(found["calibration_tokens"]),
        machine=f"{cpu['cpu']}, {cpu['cores']} cores, {memory}, GPU: {cpu['gpu'] or 'none'}",
        stages=table(Table(head, rows)),
        checks=table(Table(["", ""], checks(found), words=2)),
    )


def checks(found: Mapping[str, Any]) -> list[list[str]]:
    """Names and values of what else was found."""
    copy, model, reads = found["copy"], found["model"], found["read_per_token_bytes"]
    steady, file_bytes = model["steady_resident_bytes"], model["file_bytes"]
    times = steady / file_bytes
    longer = copy["stages_s"] / copy["cp_s"]
    parity = found["parity"]
    same = 100 * parity["top1_agreement"]
    rows = [
        ("prune, quantize and export together", seconds(copy["stages_s"])),
        (
            f"cp of as many bytes ({count(copy['bytes_per_s'] / 1e6)} MB/s)",
            f"{seconds(copy['cp_s'])}; the three stages take {longer:.2f} times as long",
        ),
        ("file of the exported model", size(file_bytes)),
        ("resident in ONNX Runtime", f"{size(steady)}, {times:.2f} times the file"),
        ("resident while it loads", size(model["load_peak_bytes"])),
        (
            f"against torch, {count(parity['tokens'])} tokens",
            f"KL {figures(parity['kl_nats'])} nats, most likely token the same at {same:.1f} %",
        ),
    ]
    rows += [
        (
            f"{phase}, batch 1, {speed['threads']} threads, {speed['path']}",
            f"{figures(speed[f'{phase}_tokens_per_s']['median'])} tokens/s",
        )
        for speed in model["speed"]
        for phase in ("prefill", "decode")
    ]
    for name, of in reads.items():
        gain = of["dense"] / of["pruned"]
        rows += [
            (f"weights read for a token, {name}, dense", size(of["dense"])),
            (f"weights read for a token, {name}, pruned", size(of["pruned"])),
            (f"at most so many times the tokens/s, {name}", f"{gain:.2f}"),
        ]
    if "turns" in found:
        rows += turns(found["turns"])
    if "workers" in found:
        rows.append(by_workers(found["workers"]))
    return [list(row) for row in rows]


def turns(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows on the pruned and the unpruned model in the same formats."""
    medians = {
        (phase, result["variant"]): result[f"{phase}_tokens_per_s"]["median"]
        for result in found["results"]
        for phase in ("prefill", "decode")
    }
    rows = []
    for phase in ("prefill", "decode"):
        pruned, dense = medians[phase, "pruned"], medians[phase, "dense"]
        rows.append(
            (
                f"{phase} of random tokens in turn, quantized, pruned / dense",
                f"{figures(pruned)} / {figures(dense)} tokens/s, {pruned / dense:.2f} times",
            )
        )
    return rows


def by_workers(found: Mapping[str, Any]) -> tuple[str, str]:
    """The row on processes that share the calibration set."""
    one, two = found["wall_s"]["1"], found["wall_s"]["2"]
    same = "the same bytes" if found["same_bytes"] else "OTHER BYTES"
    what = f"importance of {found['layers']} layers, {count(found['tokens'])} tokens"
    return (
        f"{what}, by 1 / 2 processes of one thread",
        f"{seconds(one)} / {seconds(two)}, {one / two:.2f} times as fast, {same}",
    )


if __name__ == "__main__":
    main()
