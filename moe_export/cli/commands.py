"""The commands of the command line, one function each."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_export.artifacts.base import load_json
from moe_export.artifacts.plan import Plan
from moe_export.cli.console import RunDisplay, console, print_table
from moe_export.errors import ArtifactError
from moe_export.evaluation.gates import raise_for_gates
from moe_export.recipe import Recipe, ValidateSettings, default_cache, settings_of
from moe_export.recipe.load import load_recipe
from moe_export.reporting.units import size
from moe_export.runner.run import Run, serve
from moe_export.runner.source_model import locate
from moe_export.runner.steps import Step, between, steps_of
from moe_export.runner.verify import verify as verify_run
from moe_export.system.disk import disk_error
from moe_export.system.workers import ALONE, Workers, is_first, joined
from moe_export.variants import exported


def run(arguments: argparse.Namespace) -> None:
    """Carries out a recipe."""
    recipe = load_recipe(arguments.recipe, tuple(arguments.overrides))
    steps, forced = between(steps_of(recipe), arguments.first, arguments.last)
    if arguments.dry_run:
        _dry_run(recipe)
        return
    directory = _directory(arguments)
    _execute(recipe, steps, forced, directory, arguments.threads)
    if not is_first():
        return
    validation = directory / "validate" / "validation.json"
    if any(step.stage == "report" for step in steps):
        console.print(f"report: {directory / 'report' / 'report.html'}")
        raise_for_gates(load_json(validation))
    if any(step.stage == "bakeoff" for step in steps):
        console.print((directory / "bakeoff" / "bakeoff.md").read_text(encoding="utf-8"))


def status(arguments: argparse.Namespace) -> None:
    """Says which steps are fresh, and why the others are not."""
    recipe = load_recipe(arguments.recipe, tuple(arguments.overrides))
    run = _run_of(recipe, steps_of(recipe), _directory(arguments))
    for state in run.states():
        word = "fresh" if state.fresh else ("missing" if state.reason == "missing" else "stale")
        reason = f": {state.reason}" if word == "stale" else ""
        console.print(f"{state.step.folder:<20} {word}{reason}")


def show(arguments: argparse.Namespace) -> None:
    """Prints a recipe with every default filled in."""
    import yaml  # noqa: PLC0415 - the reader has loaded it already

    recipe = load_recipe(arguments.recipe, tuple(arguments.overrides))
    sys.stdout.write(yaml.safe_dump(recipe.plain(), sort_keys=False, allow_unicode=True))


def plan(arguments: argparse.Namespace) -> None:
    """Plans anew and prints the widths."""
    recipe = load_recipe(arguments.recipe, tuple(arguments.overrides))
    steps, _ = between(steps_of(recipe), None, "plan")
    directory = _directory(arguments)
    _execute(recipe, steps, set(), directory, arguments.threads)
    if is_first():
        _print_plan(Plan.load(directory / "plan"))


def sweep(arguments: argparse.Namespace) -> None:
    """Exports and measures a grid of widths and formats."""
    from moe_export.runner.sweep_steps import points_of, sweep_steps  # noqa: PLC0415 - only here

    recipe = load_recipe(arguments.recipe, tuple(arguments.overrides))
    directory = _directory(arguments, suffix="_sweep")
    points = points_of(recipe, _exported_bytes(recipe))
    _execute(recipe, sweep_steps(recipe, points), set(), directory, arguments.threads)
    console.print((directory / "sweep" / "sweep.md").read_text(encoding="utf-8"))
    console.print(f"page: {directory / 'sweep' / 'sweep.html'}")


def compare(arguments: argparse.Namespace) -> None:
    """Puts several runs side by side."""
    from moe_export.reporting import compare as comparison  # noqa: PLC0415 - only here

    result = comparison.compare(arguments.runs)
    head, *rows = comparison.text_rows(result)
    print_table("", head, rows)
    for note in result["notes"]:
        console.print(note)
    if arguments.json is not None:
        _write(arguments.json, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if arguments.html is not None:
        _write(arguments.html, comparison.to_html(result))


def generate(arguments: argparse.Namespace) -> None:
    """Streams greedy text from an exported model."""
    from moe_export.documents.tokens import TextTokenizer  # noqa: PLC0415 - only here
    from moe_export.ort.decoding import generate as greedy  # noqa: PLC0415 - loads ONNX Runtime
    from moe_export.ort.session import OrtModel  # noqa: PLC0415 - loads ONNX Runtime

    export = arguments.run / "export"
    variants = exported(export)
    if not variants:
        raise ArtifactError(f"{export} holds no model; run the export stage")
    name = arguments.variant or list(variants)[-1]
    if name not in variants:
        raise ArtifactError(
            f"{export / name} is not there; choose another --variant: {', '.join(variants)}"
        )
    directory = variants[name]
    tokenizer = TextTokenizer(directory)
    cache = arguments.cache or default_cache(arguments.provider, arguments.operator)
    model = OrtModel(directory, arguments.provider, operator=arguments.operator, cache=cache)
    prompt = tokenizer.encode_prompt(arguments.prompt)
    tokens = greedy(model, prompt, arguments.new_tokens, tokenizer.eos_ids)
    sys.stdout.write(arguments.prompt)
    for piece in _pieces(tokenizer, tokens):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def verify(arguments: argparse.Namespace) -> None:
    """Holds every file of a run against its SHA-256."""
    checked = verify_run(arguments.run)
    console.print(f"{checked} files are as their stages wrote them")


def doctor(arguments: argparse.Namespace) -> None:
    """Says what is installed and what can run."""
    from moe_export.cli.doctor import diagnose  # noqa: PLC0415 - loads ONNX Runtime

    for name, finding in diagnose():
        console.print(f"{name:<16} {finding}", markup=False)


def bench(arguments: argparse.Namespace) -> None:
    """Times exported models side by side."""
    from moe_export.bench import models, turns  # noqa: PLC0415 - loads ONNX Runtime

    settings = turns.Settings(
        threads=arguments.threads,
        batches=arguments.batch,
        prompt_tokens=arguments.prompt_tokens,
        new_tokens=arguments.new_tokens,
        repeats=arguments.repeats,
    )
    result = turns.bench(models.models_of(arguments.runs), settings)
    for table in (turns.speed_table(result), turns.memory_table(result)):
        print_table("", table.head, table.rows)
    if arguments.json is not None:
        _write(arguments.json, json.dumps(result, indent=1) + "\n")


def sizes(arguments: argparse.Namespace) -> None:
    """Prints parameters and bytes of a model at several shares and formats."""
    from moe_export.checkpoint import read_config  # noqa: PLC0415 - loads numpy
    from moe_export.reporting.sizes import (  # noqa: PLC0415 - loads the graph
        cache_sentence,
        size_table,
        sizes_of,
    )

    computed = sizes_of(read_config(arguments.config), arguments.keep, arguments.formats)
    table = size_table(computed)
    print_table("", table.head, table.rows)
    console.print(cache_sentence(computed))


def check_gpu(arguments: argparse.Namespace) -> None:
    """Checks and times the CUDA kernels on this machine's GPU."""
    from moe_export.gpu_check import command  # noqa: PLC0415 - loads the native library

    command.check_gpu(arguments)


def _pieces(tokenizer: Any, tokens: Iterator[int]) -> Iterator[str]:
    """Text as it becomes complete: a character may be made of several tokens."""
    seen: list[int] = []
    given = ""
    for token in tokens:
        seen.append(token)
        text = tokenizer.decode(seen)
        if not text.endswith("\ufffd"):
            yield text[len(given) :]
            given = text


def _execute(
    recipe: Recipe, steps: list[Step], forced: set[str], directory: Path, threads: int | None
) -> None:
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is first loaded
    with joined() as workers:
        if workers.rank > 0:
            serve(workers, settings_of)
            return
        run = _run_of(recipe, steps, directory, workers)
        _require_what_comes(run, forced)
        with RunDisplay() as display:
            run.execute(recipe.plain(), forced, display.progress_of, display.on_step)


def _require_what_comes(run: Run, forced: set[str]) -> None:
    """Stops before the first stage where the machine lacks what the last one needs."""
    from moe_export.ort.session import require_execution  # noqa: PLC0415 - loads ONNX Runtime

    for state in run.states():
        settings = state.step.settings
        runs = not state.fresh or state.step.folder in forced
        if runs and isinstance(settings, ValidateSettings):
            require_execution(settings.providers, settings.operator)


def _run_of(recipe: Recipe, steps: list[Step], directory: Path, workers: Workers = ALONE) -> Run:
    from moe_export.runner.estimate import estimate  # noqa: PLC0415 - loads the graph
    from moe_export.runner.fingerprints import fingerprints  # noqa: PLC0415 - reads checkpoints

    model = locate(recipe.model)
    run = Run(directory, steps, model, fingerprints(steps, model), workers)
    run.predicted = {e.stage: e.cost() for e in estimate(recipe, model)}
    return run


def _directory(arguments: argparse.Namespace, suffix: str = "") -> Path:
    directory: Path = arguments.directory or Path("runs") / f"{arguments.recipe.stem}{suffix}"
    return directory


def _exported_bytes(recipe: Recipe) -> int:
    """Weights of the unpruned model once exported."""
    from moe_export.checkpoint import Checkpoint  # noqa: PLC0415 - loads numpy
    from moe_export.families import spec_of  # noqa: PLC0415
    from moe_export.graph import predicted_bytes  # noqa: PLC0415

    spec = spec_of(Checkpoint(locate(recipe.model)).config)
    return predicted_bytes(spec, recipe.export.dtype).total_bytes


def _dry_run(recipe: Recipe) -> None:
    from moe_export.runner.estimate import estimate  # noqa: PLC0415 - only here

    rows = [
        (
            e.stage,
            size(e.disk_bytes),
            size(e.partial_bytes) if e.partial_bytes else "",
            size(e.peak_bytes),
            f"{e.seconds:.0f} s",
        )
        for e in estimate(recipe, locate(recipe.model))
    ]
    print_table("predicted", ("stage", "writes", "meanwhile", "peak memory", "time"), rows)


def _print_plan(plan: Plan) -> None:
    shared = plan.prunes_shared
    rows = [
        (
            str(layer.layer),
            f"{layer.rows_after} of {layer.rows_before}",
            f"{min(layer.widths)} – {max(layer.widths)}",
            *([f"{layer.shared_width} of {layer.shared_width_before}"] if shared else []),
            *(size(layer.expert_bytes[dtype]) for dtype in plan.export_bytes),
            " ".join(map(str, layer.widths)) if len(layer.widths) <= 16 else "",
        )
        for layer in plan.layers
        if layer.widths
    ]
    bytes_by_dtype = (f"experts {dtype}" for dtype in plan.export_bytes)
    head = (
        *("layer", "rows kept", "widths", *(["shared expert"] if shared else [])),
        *(*bytes_by_dtype, ""),
    )
    print_table(f"{plan.score}, scope {plan.scope}: {plan.kept:.1%} of all rows kept", head, rows)
    for dtype, models in plan.export_bytes.items():
        variants = models.by_variant().values()
        steps = " → ".join(size(planned.total_bytes) for planned in variants)
        console.print(f"exported weights, {dtype}: {steps}")
        steps = " → ".join(size(planned.active_bytes_per_token) for planned in variants)
        console.print(f"read per token, {dtype}: {steps}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise disk_error(error, path) from error
