"""Runs of the main job with one process for each stage, and a table of what each stage took."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from moe_export.artifacts.stage_mark import StageMark
from moe_export.recipe.load import load_recipe
from moe_export.reporting.tables import Table
from moe_export.reporting.units import seconds, size
from moe_export.runner.estimate import estimate
from moe_export.stages import MAIN_JOB
from moe_export.testing.synthetic_checkpoint import make

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs/reference/report.md",
    "docs/reference/operator.md",
)

STAGES = tuple(stage for stage in MAIN_JOB if stage not in ("tune", "ranking", "eval"))
"""Stages that the recipe below has."""

RECIPE = Template("""\
model: {source: $checkpoint}
calibrate:
  sources: [{text: $text}]
  sequences: $sequences
  sequence_length: 512
importance: {scores: [fisher_margin], batch_tokens: 2048, dtype: bfloat16}
plan: {keep: 0.5, score: fisher_margin, multiple_of: 32}
prune: {refit: false}
quantize: {experts: int4, dense: int8}
export: {dtype: float16, baseline: false, pruned: false}
validate:
  tasks: [{text: $text, items: 2}]
  sequence_length: 64
  greedy_tokens: 8
  greedy_prompts: 1
  speed: {threads: [2], prompt_tokens: 32, new_tokens: 16, repeats: 2}
""")


def write_inputs(home: Path, config: dict[str, Any], sequences: int = 16) -> None:
    """Writes the checkpoint of a config, the text and the recipe; files that are there are kept.

    Args:
        home: Folder of the files; is created.
        config: Content of `config.json`.
        sequences: Number of calibration sequences of 512 tokens.
    """
    home.mkdir(parents=True, exist_ok=True)
    checkpoint, text = home / "checkpoint", home / "text.txt"
    if not checkpoint.exists():
        make(config, checkpoint)
    if not text.exists():
        documents = [(ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS]
        text.write_text("".join(documents), encoding="utf-8")
    write_recipe(home, sequences)


def write_recipe(home: Path, sequences: int) -> None:
    """Writes the recipe for the files that are in a folder."""
    recipe = RECIPE.substitute(
        checkpoint=home / "checkpoint", text=home / "text.txt", sequences=sequences
    )
    (home / "recipe.yaml").write_text(recipe, encoding="utf-8")


def carry_out(
    recipe: Path, run: Path, stage: str, changes: Mapping[str, Any] | None = None
) -> None:
    """Runs the main job up to a stage, in a process of its own."""
    command = ["run", str(recipe), "--run", str(run), "--until", stage]
    for key, value in (changes or {}).items():
        command += ["--set", f"{key}={value}"]
    done = subprocess.run([sys.executable, "-m", "moe_export", *command], check=False)
    # 5 is a gate that was not met: the default gates are for trained weights.
    if done.returncode not in (0, 5):
        sys.exit(f"tools.pages: the stage {stage} failed; run the same command again to resume")


def stage_figures(home: Path) -> dict[str, dict[str, Any]]:
    """Gathers what each stage of a finished run was predicted to take, and what it took."""
    recipe = load_recipe(home / "recipe.yaml")
    predicted = {e.stage: e.cost().plain() for e in estimate(recipe, home / "checkpoint")}
    marks = {stage: StageMark.load(home / "run" / stage) for stage in STAGES}
    return {
        stage: {
            "predicted": predicted[stage],
            "wall_s": mark.measured.wall_s,
            "peak_resident_bytes": mark.measured.peak_resident_bytes,
            "output_bytes": mark.output_bytes,
        }
        for stage, mark in marks.items()
    }


COLUMNS = {
    "peak_resident_bytes": ("peak resident memory", size),
    "wall_s": ("time", seconds),
    "output_bytes": ("output", size),
}
"""Heading of each figure of a stage, and its form."""


def stage_table(figures: Mapping[str, Any], columns: Iterable[str] = COLUMNS) -> Table:
    """Table of the figures of all stages.

    Args:
        figures: Result of `stage_figures`.
        columns: Keys of `COLUMNS`.
    """
    shown = {key: COLUMNS[key] for key in columns}
    rows = [
        [
            stage,
            *(
                f"{form(of['predicted'].get(key))} / {form(of[key])}"
                for key, (_, form) in shown.items()
            ),
        ]
        for stage, of in figures.items()
    ]
    return Table(["stage, predicted / found", *(head for head, _ in shown.values())], rows)


def machine_words(facts: Mapping[str, Any]) -> str:
    """Processor, cores, memory and GPU in one phrase."""
    memory = size(facts["memory_bytes"])
    return f"{facts['cpu']}, {facts['cores']} cores, {memory}, GPU: {facts['gpu'] or 'none'}"
