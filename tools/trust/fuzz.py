"""Hostile inputs of every kind, each read by commands in a process of its own.

A case is a kind and a number; the number is the seed of everything in it. Nothing may end in a
traceback, a crash, a hang, more than 2 GiB, no sentence, or a wrong result with exit code 0.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from moe_export.cli import main
from moe_export.stages import MAIN_JOB
from moe_export.testing.families import ROWS
from tools.trust.kinds.base import Case, Kind
from tools.trust.kinds.commands import CommandLines
from tools.trust.kinds.config import Config
from tools.trust.kinds.recipe import Recipes
from tools.trust.kinds.rows import Conversations, Rows
from tools.trust.kinds.runs import Runs
from tools.trust.kinds.templates import Templates
from tools.trust.kinds.tokenizer import TokenizerFiles
from tools.trust.kinds.weights import Index, Weights
from tools.trust.sandbox import Outcome, forked
from tools.trust.verdict import BAD, DONE, HANG, WRONG, verdict

KINDS: tuple[type[Kind], ...] = (
    Config,
    Weights,
    Index,
    TokenizerFiles,
    Recipes,
    Rows,
    Conversations,
    Templates,
    Runs,
    CommandLines,
)
ROOT = Path(__file__).parents[2]
SHOWN = 25
"""Most bad cases that are printed."""


@dataclass(frozen=True)
class Result:
    """Outcome of a case.

    Attributes:
        kind: Name of the kind.
        number: Number of the case.
        what: Description of the input.
        verdict: Verdict on its last command.
        words: Words of that command.
        said: End of what the command wrote to stderr, or what is wrong with its results.
        cpu_s: Processor time of the slowest command.
        added_bytes: Most memory that a command took beyond that of the imports.
    """

    kind: str
    number: int
    what: str
    verdict: str
    words: list[str]
    said: str
    cpu_s: float
    added_bytes: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the campaign."""
    parser.add_argument("--cases", type=int, default=1000, help="number of cases (default: 1000)")
    parser.add_argument("--start", type=int, default=0, help="number of the first (default: 0)")
    parser.add_argument("--kind", choices=[kind.NAME for kind in KINDS], help="only this kind")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="(default: all)")
    parser.add_argument("--keep", type=Path, help="folder that keeps the inputs of bad cases")


def campaign(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tries the cases that are asked for; returns figures by kind."""
    load_everything()
    kinds = [kind for kind in KINDS if arguments.kind in (None, kind.NAME)]
    numbers = range(arguments.start, arguments.start + arguments.cases)
    results = list(in_processes(kinds, numbers, arguments.processes, arguments.keep))
    bad = [result for result in results if result.verdict in BAD]
    for result in bad[:SHOWN]:
        print(json.dumps(asdict(result)))
    return {"cases": len(results), "bad": len(bad), "kinds": figures(results)}


def figures(results: list[Result]) -> dict[str, Any]:
    """Counts of verdicts and the largest costs, by kind."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        own = [result for result in results if result.kind == kind.NAME]
        if own:
            found[kind.NAME] = {
                "cases": len(own),
                "verdicts": dict(sorted(Counter(result.verdict for result in own).items())),
                "most_cpu_s": max(result.cpu_s for result in own),
                "most_added_bytes": max(result.added_bytes for result in own),
            }
    return found


def in_processes(
    kinds: list[type[Kind]], numbers: range, processes: int, keep: Path | None
) -> Iterator[Result]:
    """Yields the results of all cases, tried by several processes."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=quick_folder()) as folder:
        home = Path(folder)
        ready = prepared(kinds, home)
        children = []
        for rank in range(processes):
            child = os.fork()
            if child == 0:
                _try_all(ready, numbers[rank::processes], home / f"{rank}", keep)
            children.append(child)
        for rank, child in enumerate(children):
            _, status = os.waitpid(child, 0)
            if status != 0:
                raise RuntimeError(f"process {rank} of the campaign ended with status {status}")
            for line in (home / f"{rank}.jsonl").read_text().splitlines():
                yield Result(**json.loads(line))


def quick_folder() -> str | None:
    """Folder in memory, where a file is on its disk at once; None for the usual one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def prepared(kinds: Iterable[type[Kind]], home: Path) -> list[Kind]:
    """Makes the good inputs of kinds, each in a process of its own."""
    ready = []
    for number, kind in enumerate(kinds):
        base = home / f"base-{number}"
        base.mkdir()
        made = kind(base)
        outcome = forked(lambda made=made: made.prepare() or 0, wall_s=300)  # type: ignore[misc]
        if outcome.code != 0:
            raise RuntimeError(f"{kind.NAME}: good inputs cannot be made\n{outcome.err}")
        ready.append(made)
    return ready


def _try_all(kinds: list[Kind], numbers: range, home: Path, keep: Path | None) -> None:
    """Tries cases in a forked process, which ends here."""
    home.mkdir()
    code = 1
    try:
        with home.with_suffix(".jsonl").open("w") as file:
            for number in numbers:
                result = tried(_drawn(kinds, number), number, home / "place", keep)
                file.write(json.dumps(asdict(result)) + "\n")
        code = 0
    finally:
        os._exit(code)


def _drawn(kinds: list[Kind], number: int) -> Kind:
    """The kind of a case, drawn by its share."""
    shares = [kind.SHARE for kind in kinds]
    return Random(f"kind {number}").choices(kinds, shares)[0]


def tried(kind: Kind, number: int, place: Path, keep: Path | None = None) -> Result:
    """Makes one case, carries out its commands and judges them."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    case = kind.case(Random(f"{kind.NAME} {number}"), place)
    if keep is not None:
        shutil.copytree(place, place.with_name("before"), symlinks=True, ignore=_pipes)
    outcomes, end, said = _carried_out(case, place)
    if keep is not None:
        before = place.with_name("before")
        if end in BAD:
            shutil.copytree(before, keep / f"{kind.NAME}-{number}", symlinks=True)
        shutil.rmtree(before)
    return Result(
        kind=kind.NAME,
        number=number,
        what=case.what,
        verdict=end,
        words=case.commands[len(outcomes) - 1],
        said=said,
        cpu_s=max(outcome.cpu_s for outcome in outcomes),
        added_bytes=max(outcome.added_bytes for outcome in outcomes),
    )


def _pipes(folder: str, names: list[str]) -> list[str]:
    """Names of what cannot be copied."""
    return [
        name
        for name in names
        if not (Path(folder) / name).is_file()
        and not (Path(folder) / name).is_dir()
        and not (Path(folder) / name).is_symlink()
    ]


def _carried_out(case: Case, place: Path) -> tuple[list[Outcome], str, str]:
    outcomes: list[Outcome] = []
    for words in case.commands:
        outcome = forked(lambda words=words: _command(words, place))  # type: ignore[misc]
        if verdict(outcome) == HANG:  # once more, as the machine may have been busy
            outcome = forked(lambda words=words: _command(words, place))  # type: ignore[misc]
        outcomes.append(outcome)
        end = verdict(outcome)
        if end != DONE:
            return outcomes, end, outcome.err[-1500:]
    judged = forked(lambda: _say(case.judge(outcomes)), wall_s=120)
    if judged.code != 0:
        return outcomes, WRONG, (judged.out + judged.err)[-1500:]
    return outcomes, DONE, ""


def _command(words: list[str], place: Path) -> int:
    os.chdir(place)
    os.environ["MOE_EXPORT_CACHE"] = str(place / "cache")
    return main(words)


def _say(judgement: str) -> int:
    print(judgement)
    return 1 if judgement else 0


MODULES = (
    "onnxruntime",
    "pyarrow.parquet",
    "torch",
    "transformers.generation",
    "transformers.processing_utils",
    "transformers.models.auto.modeling_auto",
    "moe_export.api",
    "moe_export.cli.commands",
    "moe_export.cli.doctor",
    "moe_export.reporting.sizes",
    "moe_export.runner.estimate",
    "moe_export.runner.sweep_steps",
    "moe_export.serve.command",
    *(f"moe_export.stages.{stage}" for stage in MAIN_JOB),
)
"""Modules that commands import."""


def load_everything() -> None:
    """Imports what commands import, so that the forked processes need not."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["PYTHONPATH"] = str(ROOT)  # of processes that commands start in other folders
    for name in MODULES:
        import_module(name)
    for row in ROWS:
        family = row.model_type.removesuffix("_text")
        with contextlib.suppress(ModuleNotFoundError):  # this transformers does not know it
            import_module(f"transformers.models.{family}.modeling_{family}")
    gc.freeze()  # commands collect garbage, and need not look at the modules
