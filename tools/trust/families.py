"""Whole recipes of every family, killed by SIGKILL within a drawn stage, and resumed.

Each model is the tiny random one of the family's tests. An undisturbed run must pass its gates
against torch, its padded twin must equal the pruned checkpoint in transformers, and a killed and
resumed run must end with the same bytes. Stages are drawn without repetition as long as some are
left, and the moment within a stage is drawn, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM

from moe_export.testing.families import ROWS, FamilyRow
from moe_export.testing.tiny import tiny_checkpoint
from tools.trust.fuzz import load_everything, quick_folder
from tools.trust.kills import LONGEST_S, cpu_s, has_ended, is_alive_at, stage_of, start_run
from tools.trust.run_files import unequal
from tools.trust.sandbox import forked
from tools.trust.verdict import DONE, verdict

RECIPE: dict[str, Any] = {
    "model": {"source": "model"},
    "calibrate": {
        "sources": [{"demo": "sums"}, {"demo": "strings"}],
        "sequences": 8,
        "sequence_length": 64,
    },
    "plan": {"keep": 0.5, "score": "fisher_margin"},
    "prune": {"save_padded": True, "distill_blocks": False},
    "quantize": {"experts": "int4", "dense": "int8"},
    "validate": {
        "tasks": [{"demo": "sums", "items": 4}],
        "greedy_tokens": 6,
        "greedy_prompts": 2,
        "speed": {
            "batch_sizes": [1],
            "threads": [1],
            "prompt_tokens": 8,
            "new_tokens": 2,
            "repeats": 1,
        },
        # Rounded activations change more in a random model, whose experts nearly tie.
        "gates": {"max_quantized_kl_nats": 0.5, "min_quantized_top1_agreement": 0.5},
    },
}
STAGES = (
    "calibrate",
    "importance",
    "plan",
    "prune",
    "quantize",
    "export",
    "validate",
    "report",
)
"""Stages of `RECIPE`, in their order."""

LARGEST_ERROR = 1e-5
"""Largest relative difference of logits in float32."""

LONGEST_STAGE_S = 0.5
"""Processor time within a stage after which a kill comes at the latest."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the campaign."""
    names = [row.model_type for row in ROWS]
    parser.add_argument(
        "--families", nargs="+", choices=names, default=names, help="model_types (default: all)"
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=30,
        help="number of kills, one family after another (default: 30)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")


def campaign(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs, kills and resumes the recipe of each family; returns what came of it."""
    load_everything()
    random = Random(arguments.seed)
    newest = int(version("transformers").partition(".")[0])
    chosen = [row for row in ROWS if row.model_type in arguments.families]
    known = [row for row in chosen if row.oldest_transformers <= newest]
    stages_of = dealt(len(known), arguments.kills, random)
    found: dict[str, Any] = {}
    for row, stages in zip(known, stages_of, strict=True):
        with tempfile.TemporaryDirectory(prefix="families-", dir=quick_folder()) as folder:
            found[row.model_type] = tried(row, Path(folder), stages, random)
        print({row.model_type: found[row.model_type]}, flush=True)
    return summary(found) | {
        "seed": arguments.seed,
        "unknown_to_transformers": [row.model_type for row in chosen if row not in known],
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Counts over all families."""
    kills = Counter(stage for family in found.values() for stage in family["kills"])
    bad = [name for name, family in found.items() if family["bad"]]
    return {
        "families": sorted(found),
        "kills": kills.total(),
        "kills_by_stage": dict(sorted(kills.items())),
        "bad_families": bad,
        "bad": len(bad),
    }


def tried(row: FamilyRow, home: Path, stages: list[str], random: Random) -> dict[str, Any]:
    """Runs the recipe of a family once undisturbed and once for each stage to be killed in.

    Returns:
        Stages that the kills fell into, and sentences on what went wrong.
    """
    tiny_checkpoint(home / "model", base=row.config)
    recipe = home / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"model": {"source": str(home / "model")}}))
    words = ["run", str(recipe), "--threads", "1", "--run"]
    bad = [f"undisturbed: {said}" for said in _ended(words, home / "whole")]
    twin = forked(lambda: int(twin_error(home / "whole" / "prune") > LARGEST_ERROR), LONGEST_S)
    if twin.code:
        bad.append("undisturbed: the padded twin has other logits")
    kills = []
    for stage in () if bad else stages:
        kills.append(_killed([*words, str(home / "run")], home / "run", stage, random))
        said = _ended(words, home / "run") + unequal(home / "whole", home / "run")
        bad += [f"killed in {kills[-1]}: {each}" for each in said]
        shutil.rmtree(home / "run")
    return {"kills": kills, "bad": bad}


def twin_error(pruned: Path) -> float:
    """Largest difference of logits between a pruned checkpoint and its twin of full widths.

    Args:
        pruned: Folder of the prune stage. Stock transformers load `padded` in it.

    Returns:
        The difference relative to the largest logit.
    """
    tokens = torch.arange(40, 60)[None]
    with torch.no_grad():
        small, twin = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            for folder in (pruned, pruned / "padded")
        )
        if type(twin).__module__.partition(".")[0] != "transformers":
            raise TypeError(f"{type(twin)} is no class of transformers")
        expected, actual = small.eval()(tokens).logits, twin.eval()(tokens).logits
    return float((actual - expected).abs().max() / expected.abs().max())


def dealt(families: int, kills: int, random: Random) -> list[list[str]]:
    """Stages to be killed in, by family: all in a drawn order, then all in another."""
    orders = [random.sample(STAGES, len(STAGES)) for _ in range(0, kills, len(STAGES))]
    stages = [stage for order in orders for stage in order][:kills]
    return [stages[number::families] for number in range(families)]


def _ended(words: list[str], run: Path) -> list[str]:
    """Starts a run and waits for its end; returns what is wrong with the end."""
    outcome = start_run([*words, str(run)], is_new=False).wait(LONGEST_S)
    return [] if verdict(outcome) == DONE else [f"exit code {outcome.code}: {outcome.err[-500:]}"]


def _killed(words: list[str], run: Path, stage: str, random: Random) -> str:
    """Kills a run within a stage, or soon after it; returns the stage.

    A run that ends before its kill is started again.
    """
    while True:
        started = start_run(words, is_new=False)
        while not (run / f"{stage}.partial").exists() and not has_ended(started.process):
            time.sleep(0.001)
        moment_s = cpu_s(started.process) + random.uniform(0, LONGEST_STAGE_S)
        if is_alive_at(started.process, moment_s):
            os.kill(started.process, signal.SIGKILL)
        if started.wait().code == -signal.SIGKILL:
            return stage_of(run)
        shutil.rmtree(run, ignore_errors=True)
