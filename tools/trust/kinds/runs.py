"""Finished run directories in which a file was changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random

from moe_export.cli import main
from moe_export.testing.tiny import tiny_checkpoint
from tools.trust.kinds.base import RIGHT, Case, Kind, run_words, write_recipe
from tools.trust.mutate import change_bytes, change_json, json_bytes
from tools.trust.run_files import same_files, unequal
from tools.trust.sandbox import Outcome

STAGES = ("calibrate", "importance", "plan", "prune", "quantize", "export", "validate", "report")
VALIDATE = {
    "tasks": [
        {"jsonl": "rows.jsonl", "prompt_field": "question", "answer_field": "answer", "items": 3}
    ],
    "sequence_length": 48,
    "greedy_tokens": 2,
    "greedy_prompts": 1,
    "speed": {
        "batch_sizes": [1],
        "threads": [1],
        "prompt_tokens": 4,
        "new_tokens": 1,
        "repeats": 1,
    },
    "gates": {
        "max_quantized_kl_nats": 5.0,
        "min_quantized_top1_agreement": 0.0,
        "min_greedy_agreement": 0.0,
    },
}
PROMPT = ["--prompt", "The number", "--new-tokens", "3"]


class Runs(Kind):
    """A command that reads a changed run refuses it, or `verify` does, or all is made again."""

    NAME = "run directory"
    WHAT = "bytes, values, links and missing files of a finished run"
    SHARE = 1.0

    def prepare(self) -> None:
        tiny_checkpoint(self.base / "model")
        write_recipe(self.base, quantize={"experts": "int4"}, validate=VALIDATE)
        here = Path.cwd()
        os.chdir(self.base)
        try:
            code = main(run_words())
            if code != 0:
                raise RuntimeError(f"the run of the base ended with code {code}")
        finally:
            os.chdir(here)

    def case(self, random: Random, place: Path) -> Case:
        shutil.copytree(self.base, place, dirs_exist_ok=True)
        run = place / "run"
        files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
        path = random.choice(files)
        what = f"{path.relative_to(run)}: {_change(random, path)}"
        command = random.choice(
            (
                ["verify", "run"],
                run_words(),
                run_words("--until", random.choice(STAGES)),
                run_words("--from", random.choice(STAGES)),
                ["status", "recipe.yaml", "--run", "run", "--threads", "1"],
                ["plan", "recipe.yaml", "--run", "run", "--threads", "1"],
                ["compare", "run", "run"],
                ["generate", "run", *PROMPT],
            )
        )
        return Case(
            f"{command[0]}: {what}",
            [command],
            lambda outcomes: _judge(self.base / "run", run, command, outcomes),
        )


def _change(random: Random, path: Path) -> str:
    way = random.randrange(10)
    if path.suffix == ".json" and way < 5:
        content, what = change_json(random, json.loads(path.read_bytes()))
        path.write_bytes(json_bytes(content))
        return what
    if way < 8:
        raw, what = change_bytes(random, path.read_bytes())
        path.write_bytes(raw)
        return what
    content = path.read_bytes()
    path.unlink()
    if way == 8:
        return "removed"
    kind = random.choice(("pipe", "folder", "link", "nowhere"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        outside = path.parents[0] / ".." / ".." / f"outside-{path.name}"
        if kind == "link":
            outside.write_bytes(content)
        path.symlink_to(outside.absolute())
    return f"replaced: {kind}"


def _judge(good: Path, run: Path, command: list[str], _: list[Outcome]) -> str:
    if main(["verify", str(run)]) != 0:
        return RIGHT  # what was changed and not made again is still noticed
    if command[0] == "verify" and not same_files(good, run):
        return "verify passes a changed run"
    names = unequal(good, run)
    return f"verify passes, and {names[0]} is not that of an undisturbed run" if names else RIGHT
