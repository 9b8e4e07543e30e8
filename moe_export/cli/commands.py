"""The commands of the command line, one function each, over `moe_export.api`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from moe_export import api
from moe_export.artifacts.manifest import Manifest
from moe_export.artifacts.report import Report
from moe_export.cli.console import RunDisplay, print_table, say, say_line
from moe_export.cli.tables import print_estimates, print_plan, print_states
from moe_export.errors import GateError, RecipeError
from moe_export.recipe import Recipe
from moe_export.runner.execution import execute, open_run
from moe_export.runner.result import RunResult
from moe_export.runner.source_model import inspect_if_there, locate
from moe_export.runner.steps import between, steps_of
from moe_export.runner.verify import compare as compare_run
from moe_export.runner.verify import manifest_of
from moe_export.runner.verify import verify as verify_run
from moe_export.system.disk import disk_error
from moe_export.system.text import printable
from moe_export.system.workers import is_first


def run(arguments: argparse.Namespace) -> None:
    """Runs a recipe, or predicts what it will need."""
    if arguments.workers > 1 and not arguments.dry_run:
        raise RecipeError(
            "--workers only predicts, with --dry-run; torchrun starts the processes of a run"
        )
    if arguments.dry_run:
        _dry_run(arguments)
        return
    result = RunResult(_directory(arguments))
    try:
        with RunDisplay() as display:
            api.run(
                arguments.recipe,
                result.directory,
                first=arguments.first,
                until=arguments.last,
                overrides=arguments.overrides,
                threads=arguments.threads,
                progress=display,
            )
    except GateError:
        say_line(f"report: {result.report}")
        raise
    if is_first() and arguments.last in (None, "report", "bakeoff"):
        _print_result(result)


def status(arguments: argparse.Namespace) -> None:
    """Prints which stages are fresh, and why the others are not."""
    recipe = _recipe(arguments)
    run = open_run(recipe, steps_of(recipe), _directory(arguments), threads=arguments.threads)
    print_states(run.states())


def show(arguments: argparse.Namespace) -> None:
    """Prints a recipe with every default filled in."""
    import yaml  # noqa: PLC0415 - loaded already, by the reader of recipes

    plain = _recipe(arguments).plain()
    sys.stdout.write(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def plan(arguments: argparse.Namespace) -> None:
    """Plans again and prints the widths."""
    with RunDisplay() as display:
        planned = api.plan(
            arguments.recipe,
            _directory(arguments),
            arguments.overrides,
            threads=arguments.threads,
            progress=display,
        )
    if is_first():
        print_plan(planned)


def sweep(arguments: argparse.Namespace) -> None:
    """Exports and measures a grid of widths and formats."""
    from moe_export.runner.sweep_steps import points_of, sweep_steps  # noqa: PLC0415 - only here

    recipe = _recipe(arguments)
    result = RunResult(_directory(arguments, suffix="_sweep"))
    steps = sweep_steps(recipe, points_of(recipe, _exported_bytes(recipe)))
    with RunDisplay() as display:
        execute(recipe, steps, result.directory, threads=arguments.threads, watcher=display)
    if is_first():
        _print_result(result)


def compare(arguments: argparse.Namespace) -> None:
    """Compares several runs."""
    from moe_export.reporting import compare as comparison  # noqa: PLC0415 - only here

    result = api.compare(arguments.runs)
    head, *rows = comparison.text_rows(result)
    print_table("", head, rows)
    for note in result.notes:
        say_line(note)
    if arguments.json is not None:
        _write(arguments.json, result.text())
    if arguments.html is not None:
        _write(arguments.html, comparison.to_html(result))


def eval(arguments: argparse.Namespace) -> None:  # noqa: A001 - name of the command
    """Runs tasks of lm-eval on the models of a run."""
    from moe_export.reporting.harness_table import harness_table  # noqa: PLC0415 - only here

    with RunDisplay() as display:
        evaluation = api.evaluate(
            arguments.run,
            arguments.tasks,
            include_path=arguments.include_path,
            limit=arguments.limit,
            num_fewshot=arguments.num_fewshot,
            models=arguments.models,
            operators=arguments.operators,
            batch_size=arguments.batch_size,
            max_length=arguments.max_length,
            progress=display,
        )
    table = harness_table(evaluation.tasks, evaluation.models)
    print_table("", table.head, table.rows)
    say_line(f"report: {RunResult(arguments.run).report}")


def generate(arguments: argparse.Namespace) -> None:
    """Streams greedy text from an exported model."""
    model = api.load(
        arguments.run,
        provider=arguments.provider,
        variant=arguments.variant,
        operator=arguments.operator,
        cache=arguments.cache,
    )
    pieces = model.stream(arguments.prompt, arguments.new_tokens, speculate=arguments.speculate)
    sys.stdout.write(printable(arguments.prompt, keep="\n\t"))
    for piece in pieces:
        sys.stdout.write(printable(piece, keep="\n\t"))
        sys.stdout.flush()
    sys.stdout.write("\n")


def serve(arguments: argparse.Namespace) -> None:
    """Serves an exported model with the routes of the OpenAI API."""
    from moe_export.serve.command import serve_command  # noqa: PLC0415 - an extra

    serve_command(arguments)


def verify(arguments: argparse.Namespace) -> None:
    """Checks every file of a run against its record and, if given, a manifest."""
    if arguments.against is not None:
        manifest = Manifest.load_file(arguments.against)
        say_line(f"{compare_run(arguments.run, manifest)} files are those of the manifest")
    checked = verify_run(arguments.run)
    say_line(f"{checked} files are as their stages wrote them")
    if arguments.write is not None:
        _write_manifest(arguments.run, arguments.write)


def doctor(arguments: argparse.Namespace) -> None:
    """Prints what is installed and what can run."""
    from moe_export.cli.doctor import diagnose  # noqa: PLC0415 - loads ONNX Runtime

    for name, finding in diagnose():
        say_line(f"{name:<16} {finding}")


def bench(arguments: argparse.Namespace) -> None:
    """Times exported models side by side."""
    from moe_export.bench import models, nodes, turns  # noqa: PLC0415 - loads ONNX Runtime

    settings = turns.Settings(
        threads=arguments.threads,
        batches=arguments.batch,
        prompt_tokens=arguments.prompt_tokens,
        new_tokens=arguments.new_tokens,
        repeats=arguments.repeats,
    )
    chosen = models.models_of(arguments.runs, arguments.llama_cpp)
    result = turns.bench(chosen, settings)
    for table in (turns.speed_table(result), turns.memory_table(result)):
        print_table("", table.head, table.rows)
    if arguments.nodes:
        at = (arguments.threads[0], arguments.prompt_tokens[0], arguments.new_tokens)
        found = {
            model.name: nodes.nodes_of(model, *at) for model in chosen if model.llama_cpp is None
        }
        for name, times in found.items():
            table = nodes.node_table(name, times)
            print_table("", table.head, table.rows)
        result["nodes"] = {name: asdict(times) for name, times in found.items()}
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

    computed = sizes_of(
        read_config(arguments.config), arguments.keep, arguments.formats, arguments.top_k
    )
    table = size_table(computed)
    print_table("", table.head, table.rows)
    say_line(cache_sentence(computed, arguments.context))


def check_gpu(arguments: argparse.Namespace) -> None:
    """Checks and times the CUDA kernels on this machine's GPU."""
    from moe_export.gpu_check import command  # noqa: PLC0415 - loads the native library

    command.check_gpu(arguments)


def _recipe(arguments: argparse.Namespace) -> Recipe:
    return api.read_recipe(arguments.recipe, arguments.overrides)


def _directory(arguments: argparse.Namespace, suffix: str = "") -> Path:
    return api.run_directory(arguments.recipe, arguments.directory, suffix)


def _dry_run(arguments: argparse.Namespace) -> None:
    from moe_export.runner.estimate import estimate  # noqa: PLC0415 - loads the graph builder

    recipe = _recipe(arguments)
    between(steps_of(recipe), arguments.first, arguments.last)  # refuses an unknown stage
    model = locate(recipe.model)
    inspect_if_there(model)
    print_estimates(estimate(recipe, model), arguments.workers)


def _print_result(result: RunResult) -> None:
    from moe_export.reporting.sentences import warning_sentence  # noqa: PLC0415 - loads tables

    if result.comparison is not None:
        say(result.comparison.read_text(encoding="utf-8"))
        say_line(f"page: {result.comparison.with_suffix('.html')}")
    elif result.report is not None:
        if warning := warning_sentence(Report.load(result.report.parent)):
            say_line(f"warning: {warning}")
        say_line(f"report: {result.report}")


def _exported_bytes(recipe: Recipe) -> int:
    """Bytes of the unpruned model's weights once exported."""
    from moe_export.checkpoint import Checkpoint  # noqa: PLC0415 - only here
    from moe_export.families import spec_of  # noqa: PLC0415
    from moe_export.graph import predicted_bytes  # noqa: PLC0415

    spec = spec_of(Checkpoint(locate(recipe.model)).config)
    return predicted_bytes(spec, recipe.export.dtype).total_bytes


def _write_manifest(run: Path, path: Path) -> None:
    if path.absolute().resolve().is_relative_to(run.resolve()):
        raise RecipeError(
            f"--write {path}: a manifest in the run protects nothing; keep it elsewhere"
        )
    _write(path, manifest_of(run).text())


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise disk_error(error, path) from error
