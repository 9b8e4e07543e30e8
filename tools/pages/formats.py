"""Formats of experts, attention and the lm_head, and what each costs a whole model.

The unpruned model is quantized in every combination and scored in torch with its weights
dequantized, so that nothing but the weights differs. SmolLM2 is made by `python -m tools.real_model
--out smollm2`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from moe_export.evaluation.masking import score_tasks
from moe_export.evaluation.tally import mean_exact_match
from moe_export.families import open_checkpoint
from moe_export.graph.predict import predicted_bytes
from moe_export.planning.shares import uniform_shares
from moe_export.recipe import QuantizeSettings
from moe_export.recipe.load import load_recipe
from moe_export.stages import quantize
from moe_export.stages.job import Job
from moe_export.torch_model import load_torch_model
from tools.pages.demo_runs import carried_out, scored_tasks
from tools.pages.page import rounded, write_page
from tools.pages.three_bits import SUBJECTS, Subject, finished_rows

METHODS = ("mse", "gptq")


@dataclass(frozen=True)
class Formats:
    """Formats of a model's parts.

    Attributes:
        experts: Format of the experts.
        dense: Format of attention and of layers without experts.
        lm_head: Format of the lm_head.
    """

    experts: str
    dense: str
    lm_head: str


COMBINATIONS = (
    Formats("int4", "float", "float"),
    Formats("float", "int8", "float"),
    Formats("float", "int4", "float"),
    Formats("float", "uint4", "float"),
    Formats("float", "float", "int8"),
    Formats("float", "float", "int4"),
    Formats("float", "float", "uint4"),
    Formats("int8", "int8", "int8"),
    Formats("int4", "int8", "int8"),
    Formats("int4", "int4", "int8"),
    Formats("int4", "int8", "int4"),
    Formats("int4", "int4", "int4"),
    Formats("uint4", "uint4", "uint4"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/formats"),
        help="folder of the runs; finished rows in it are not measured again",
    )
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))


def make(arguments: argparse.Namespace) -> None:
    """Measures the rows that are asked for, and writes the page of all that are finished."""
    for name in arguments.models:
        measure(SUBJECTS[name], arguments.run / name, arguments.methods)
    finished = {name: finished_rows(arguments.run / name) for name in SUBJECTS}
    data = rounded({name: rows for name, rows in finished.items() if rows})
    write_page("formats", data, markdown(data))


def measure(subject: Subject, directory: Path, methods: list[str]) -> None:
    """Scores the rows of a model that `directory` does not hold yet."""
    recipe = load_recipe(subject.recipe, ("plan.keep=1.0", "prune.refit=false"))
    model = carried_out(recipe, directory, "prune")
    tasks = {
        name: task
        for name, task in scored_tasks(recipe, model, subject.items).items()
        if subject.scores_answers or not task.has_answers
    }
    dense = load_torch_model(model, torch.float32)
    for method, formats in product(methods, COMBINATIONS):
        words = "-".join(asdict(formats).values())
        file = directory / f"row-{method}-{words}.json"
        if file.exists():
            continue
        quantized = directory / "quantized"
        shutil.rmtree(quantized, ignore_errors=True)
        quantized.mkdir()
        folders = {stage: directory / stage for stage in ("calibrate", "prune")}
        settings = QuantizeSettings.model_validate(asdict(formats) | {"method": method})
        quantize.run(Job(settings, quantized, folders, quantized))
        scores = score_tasks(load_torch_model(quantized, torch.float32), tasks, dense)
        answered = [task for task in scores.values() if task.exact_match is not None]
        texts = [task for task in scores.values() if task.exact_match is None]
        row = asdict(formats) | {
            "method": method,
            "token_bytes": read_bytes(quantized),
            "text_kl_nats": fmean(task.kl_nats for task in texts if task.kl_nats is not None),
            "exact_match": mean_exact_match(scores) if answered else None,
        }
        file.write_text(json.dumps(row), encoding="utf-8")
        shutil.rmtree(quantized)


def read_bytes(folder: Path) -> float:
    """Bytes of weights that a token reads in a packed float16 export, experts equally often."""
    _, spec = open_checkpoint(folder)
    sizes = predicted_bytes(spec, "float16", "packed")
    return float(sizes.active_bytes(spec, uniform_shares(spec)))


def markdown(data: Mapping[str, Any]) -> str:
    """The page from its data."""
    lines = ["# Formats of a whole model", "", INTRODUCTION, ""]
    for name, rows in data.items():
        lines += [f"## {SUBJECTS[name].title}", "", *_table(rows), ""]
    return "\n".join(lines)


INTRODUCTION = (
    "Made by `python -m tools.pages formats`; for SmolLM2 after `python -m tools.real_model --out "
    "smollm2`. The unpruned model, scored in torch with dequantized weights in groups of 32; "
    "activations are not rounded. KL is from the model itself unquantized, per token of held-out "
    "text, in thousandths of a nat: of the demo model on 100 documents, of SmolLM2 on 12 windows "
    "of up to 512 tokens. Exact match is the mean over the demo model's four tasks of 100 "
    "documents. Bytes are those that a token reads of the weights of a packed float16 export. "
    "Empty cells were not measured. Before they came here SmolLM2's lm_head was in 8 bits and all "
    "else in 4 with zero points, so that int8 loses nothing in the lm_head, and little elsewhere."
)


def _table(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    found = {(row["method"], _formats(row)): row for row in rows}
    heads = [f"{word}, {method}" for word in ("KL", "exact match") for method in METHODS]
    yield f"| experts | attention | lm_head | MB a token | {' | '.join(heads)} |"
    yield f"| --- | --- | --- |{' ---: |' * (1 + len(heads))}"
    for formats in COMBINATIONS:
        of_formats = [found.get((method, formats)) for method in METHODS]
        known = [row for row in of_formats if row is not None]
        if known:
            cells = [*asdict(formats).values(), f"{known[0]['token_bytes'] / 1e6:.2f}"]
            cells += [_cell(row, "text_kl_nats", "{:.2f}", 1000) for row in of_formats]
            cells += [_cell(row, "exact_match", "{:.1%}", 1) for row in of_formats]
            yield f"| {' | '.join(cells)} |"


def _cell(row: Mapping[str, Any] | None, key: str, shape: str, factor: float) -> str:
    if row is None or row[key] is None:
        return ""
    return shape.format(factor * row[key])


def _formats(row: Mapping[str, Any]) -> Formats:
    return Formats(row["experts"], row["dense"], row["lm_head"])
