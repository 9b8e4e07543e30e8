"""The text of the page full_size, from its figures alone."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template
from typing import Any

from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from moe_export.reporting.units import count, figures, seconds, size
from tools.pages.stage_runs import machine_words, stage_table

PAGE = Template("""\
# Full size on a small machine

`python -m tools.pages full_size HOME` made this page and [full_size.json](data/full_size.json). \
The model has
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


def markdown(data: Mapping[str, Any]) -> str:
    """The page from its data."""
    return PAGE.substitute(
        layers=data["layers"],
        checkpoint_gb=f"{data['checkpoint_bytes'] / 1e9:.1f}",
        tokens=count(data["calibration_tokens"]),
        machine=machine_words(data["machine"]),
        stages=table(stage_table(data["stages"])),
        checks=table(Table(["", ""], checks(data), words=2)),
    )


def checks(data: Mapping[str, Any]) -> list[list[str]]:
    """Names and values of the figures that are not of one stage."""
    copy, model, reads = data["copy"], data["model"], data["read_per_token_bytes"]
    steady, file_bytes = model["steady_resident_bytes"], model["file_bytes"]
    times = steady / file_bytes
    longer = copy["stages_s"] / copy["cp_s"]
    parity = data["parity"]
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
    if "turns" in data:
        rows += turns(data["turns"])
    if "workers" in data:
        rows.append(by_workers(data["workers"]))
    if "costs" in data:
        rows.append(of_hashing_and_syncing(data["costs"]))
    return [list(row) for row in rows]


def turns(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows that compare the pruned and the unpruned model in the same formats."""
    medians = {
        (phase, result["variant"]): result[f"{phase}_tokens_per_s"]["median"]
        for result in data["results"]
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


def by_workers(data: Mapping[str, Any]) -> tuple[str, str]:
    """Row that compares one process with two that share the calibration set."""
    one, two = data["wall_s"]["1"], data["wall_s"]["2"]
    same = "the same bytes" if data["same_bytes"] else "OTHER BYTES"
    what = f"importance of {data['layers']} layers, {count(data['tokens'])} tokens"
    return (
        f"{what}, by 1 / 2 processes of one thread",
        f"{seconds(one)} / {seconds(two)}, {one / two:.2f} times as fast, {same}",
    )


def of_hashing_and_syncing(costs: Mapping[str, Any]) -> tuple[str, str]:
    """Row that compares runs with hashing and syncing to runs without them."""
    walls_s = costs["median_wall_s"]
    both, neither = walls_s["both"], walls_s["neither"]
    what = f"of {costs['layers']} layers, with / without hashing and syncing"
    spread = " / ".join(
        f"{seconds(min(costs['walls_s'][mode]))} to {seconds(max(costs['walls_s'][mode]))}"
        for mode in ("both", "neither")
    )
    how = (
        f"medians of {costs['repeats']} runs in turn, imports included; {spread}; what is not "
        "synced is written while the next stage reads"
    )
    return (
        f"prune, quantize and export {what}",
        f"{seconds(both)} / {seconds(neither)}, {both / neither - 1:+.1%} ({how})",
    )
