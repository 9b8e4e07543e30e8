"""The command line: arguments become calls; an error becomes one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from pathlib import Path
from typing import NoReturn

from moe_export import __version__
from moe_export.cli import interrupts
from moe_export.errors import INTERRUPTED_EXIT_CODE, MoeExportError, ResourceError
from moe_export.gpu_check.options import add_options
from moe_export.system.text import printable
from moe_export.variants import VARIANTS

MOST_THREADS = 1024

EXIT_CODES = """\
exit codes:
  0 done   1 unexpected   2 recipe or usage   3 missing package, provider or data
  4 disk or memory   5 a gate of the recipe failed (the report is written)
  6 source model   7 calibration set   8 plan   9 run directory   10 shapes
  130 interrupted; finished stages are kept, run the same command to resume
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: words after the program's name; those of this process if None.

    Returns:
        The exit code.
    """
    parsed = _parser().parse_args(arguments)
    _log(logging.INFO if parsed.verbose else logging.WARNING)
    interrupts.watch()
    interrupts.silence_dropped()
    # Imported only now, because `--help` must not wait for numpy and pydantic.
    from moe_export.cli import commands  # noqa: PLC0415

    try:
        getattr(commands, parsed.command.replace("-", "_"))(parsed)
    except MoeExportError as error:
        return _fail(str(error), error.exit_code)
    except MemoryError:
        return _fail(
            f"memory ran out in the command {parsed.command}; end other programs or use a machine "
            "with more",
            ResourceError.exit_code,
        )
    except KeyboardInterrupt:
        return _fail(interrupts.SENTENCE, INTERRUPTED_EXIT_CODE)
    except BrokenPipeError:  # the reader of our output has closed the pipe, as `| head` does
        sys.stderr.close()
        return 0
    except OSError as error:  # of a path that nobody looked at before, such as one that is too long
        place = "a file" if error.filename is None else error.filename
        return _fail(
            f"{place}: {error.strerror or error}; check the path, its rights and its disk",
            ResourceError.exit_code,
        )
    return 0


def _fail(sentence: str, code: int) -> int:
    with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
        sys.stdout.flush()
        sys.stderr.write(f"moe-export: {printable(sentence)}\n")
    return code


class _Printable(logging.Formatter):
    """Lines of a log in which names of files cannot act on the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


def _log(level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class _Parser(argparse.ArgumentParser):
    """Parser whose errors quote no character that acts on the terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="moe-export",
        description="Prunes a Mixture-of-Experts model by expert dimension, exports it to one ONNX "
        "file, and proves accuracy, memory and speed in ONNX Runtime.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"moe-export {__version__}")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="log one line per layer and stage"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = _with_recipe(commands, "run", "run a recipe; skip stages whose results are still valid")
    run.add_argument(
        "--from", dest="first", metavar="STAGE", help="run this stage and all later ones again"
    )
    run.add_argument("--until", dest="last", metavar="STAGE", help="last stage to run")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="print predicted disk space, memory and time per stage; write nothing",
    )
    run.add_argument(
        "--workers",
        type=_count,
        default=1,
        metavar="N",
        help="with --dry-run: predict N processes of torchrun, as fast as this one (default: 1)",
    )
    run.add_argument(
        "--threads", type=_threads, help="number of torch threads (default: all cores)"
    )

    status = _with_recipe(
        commands, "status", "print which stages are fresh, stale (and why) or missing"
    )
    status.add_argument(
        "--threads", type=_threads, help="number of torch threads of the run (default: all cores)"
    )
    _with_recipe(commands, "show", "print the recipe with every default filled in", run=False)
    plan = _with_recipe(
        commands, "plan", "plan again from the stored importance and print the widths"
    )
    plan.add_argument(
        "--threads", type=_threads, help="number of torch threads (default: all cores)"
    )

    sweep = _with_recipe(
        commands, "sweep", "export and measure a grid of widths and formats after one calibration"
    )
    sweep.add_argument(
        "--threads", type=_threads, help="number of torch threads (default: all cores)"
    )

    compare = commands.add_parser("compare", help="compare several runs")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory")
    compare.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the comparison as JSON"
    )
    compare.add_argument(
        "--html", type=Path, metavar="FILE", help="also write the comparison as an HTML page"
    )

    generate = commands.add_parser("generate", help="stream text from an exported model")
    generate.add_argument(
        "run", type=Path, metavar="RUN", help="a run directory, or a folder with an exported model"
    )
    generate.add_argument("--prompt", required=True, help="text to continue")
    generate.add_argument(
        "--variant",
        choices=VARIANTS,
        help="exported model (default: the quantized one; the pruned one if there is none)",
    )
    generate.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    generate.add_argument(
        "--operator",
        choices=("native", "portable"),
        default="native",
        help="code of the experts: the native library (default) or standard operators",
    )
    generate.add_argument(
        "--cache",
        choices=("growing", "static", "captured"),
        help="form of the KV cache, as validate.cache (default: static on cpu; captured on cuda, "
        "or static with the portable operator)",
    )
    generate.add_argument(
        "--new-tokens", type=_count, default=64, help="greatest number of new tokens (default: 64)"
    )
    generate.add_argument("--speculate", action="store_true", help=_SPECULATE)

    verify = commands.add_parser("verify", help="compare every file of a run with its SHA-256")
    verify.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    verify.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="also compare with a manifest that was kept elsewhere",
    )
    verify.add_argument(
        "--write", type=Path, metavar="FILE", help="then write a manifest to keep elsewhere"
    )

    _add_eval(commands)
    _add_serve(commands)
    _add_bench(commands)
    _add_sizes(commands)
    add_options(commands.add_parser("check-gpu", help="check and time the CUDA kernels on a GPU"))
    commands.add_parser(
        "doctor", help="print what is installed, which providers run, and why others do not"
    )
    return parser


_SPECULATE = (
    "take several greedy tokens in a step, drafted from the text so far, while that is faster (cpu)"
)


def _add_eval(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "eval",
        help="run tasks of lm-eval on the models of a run",
        description="Runs tasks of lm-eval on the checkpoints in torch and on the exported models "
        "in ONNX Runtime, and writes the report again. What is not given here is as in the "
        "recipe's section eval. It needs moe-export[eval]; most tasks load a data set from the "
        "Hugging Face hub.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--tasks", type=_names, metavar="A,B", help="tasks or groups (default: the recipe's)"
    )
    parser.add_argument("--include-path", metavar="DIR", help="folder with tasks of your own")
    parser.add_argument("--limit", type=_count, metavar="N", help="most documents of each task")
    parser.add_argument(
        "--num-fewshot", type=int, metavar="N", help="examples before each question"
    )
    parser.add_argument(
        "--variants",
        dest="models",
        type=_names,
        metavar="A,B",
        help="source and checkpoint in torch; baseline, pruned and quantized in ONNX Runtime "
        "(default: all that exist)",
    )
    parser.add_argument(
        "--operator",
        dest="operators",
        type=_names,
        metavar="A,B",
        help="native or portable or both (default: as validate.operator)",
    )
    parser.add_argument("--batch-size", type=_count, metavar="N", help="sequences at a time")
    parser.add_argument("--max-length", type=_count, metavar="N", help="most tokens of a sequence")


def _add_serve(commands: argparse._SubParsersAction[_Parser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve an exported model with the routes of the OpenAI API",
        description="Serves an exported model over HTTP: /v1/models, /v1/completions, "
        "/v1/chat/completions, /health and /metrics. Requests share steps. SIGTERM or Ctrl-C "
        "ends it once running requests are answered. It needs moe-export[serve].",
    )
    serve.add_argument(
        "run", type=Path, metavar="RUN", help="a run directory, or a folder with an exported model"
    )
    serve.add_argument(
        "--variant",
        choices=VARIANTS,
        help="exported model (default: the quantized one; the pruned one if there is none)",
    )
    serve.add_argument("--name", help="name of the model in requests (default: that of RUN)")
    serve.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    serve.add_argument(
        "--operator",
        choices=("native", "portable"),
        default="native",
        help="code of the experts: the native library (default) or standard operators",
    )
    serve.add_argument(
        "--threads", type=_count, default=0, help="number of threads (default: all cores)"
    )
    serve.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    serve.add_argument(
        "--port", type=int, default=8000, help="port; 0 for any that is free (default: 8000)"
    )
    serve.add_argument(
        "--api-key",
        metavar="KEY",
        help="key that requests must carry (default: MOE_EXPORT_API_KEY of the environment; other "
        "users can read options of a process)",
    )
    serve.add_argument(
        "--rows", type=_count, default=16, help="sequences that share a step (default: 16)"
    )
    serve.add_argument(
        "--context",
        type=_count,
        metavar="TOKENS",
        help="longest prompt and answer together (default: 4096, or the model's if less)",
    )
    serve.add_argument(
        "--queue", type=_count, default=256, help="sequences that may wait (default: 256)"
    )
    serve.add_argument(
        "--chunk",
        type=_count,
        default=256,
        metavar="TOKENS",
        help="tokens of prompts in one step (default: 256)",
    )
    serve.add_argument(
        "--speculate", action="store_true", help=f"{_SPECULATE}; for a request alone"
    )
    serve.add_argument(
        "--cache-mib",
        type=_count,
        metavar="MIB",
        help="memory that keys and values may take (default: half of what is free)",
    )
    serve.add_argument(
        "--grace",
        type=_count,
        default=30,
        metavar="SECONDS",
        help="time that running requests get after a signal to stop (default: 30)",
    )


def _add_bench(commands: argparse._SubParsersAction[_Parser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="time exported models side by side",
        description="Times exported models: the prompt, decoding, loading, and memory against the "
        "file. Each model has a process of its own; the processes take turns, so that ratios hold "
        "on a machine with other work. Prompts and tokens are random.",
    )
    bench.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run directory or a folder with model.onnx; NAME=RUN names it in the table, "
        "RUN@portable runs it without the native library, RUN@copied copies its packed weights to "
        "huge pages at loading; a file FILE.gguf is run by llama.cpp",
    )
    bench.add_argument(
        "--llama-cpp",
        type=Path,
        metavar="DIR",
        help="folder of llama.cpp's libraries, as in node_modules/@node-llama-cpp/linux-x64/bins/"
        "linux-x64 after npm install @node-llama-cpp/linux-x64@3.22.1",
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write it as JSON")
    several = "(default: %(default)s)"
    bench.add_argument(
        "--threads",
        type=_threads,
        nargs="+",
        default=[1, 2],
        metavar="N",
        help=f"threads {several}",
    )
    bench.add_argument(
        "--batch", type=_count, nargs="+", default=[1, 8], metavar="N", help=f"batches {several}"
    )
    bench.add_argument(
        "--prompt-tokens",
        type=_count,
        nargs="+",
        default=[128],
        metavar="N",
        help="lengths of the prompt (default: 128)",
    )
    bench.add_argument("--new-tokens", type=_count, default=32, metavar="N", help="(default: 32)")
    bench.add_argument(
        "--repeats", type=_count, default=5, metavar="N", help="measurements of each (default: 5)"
    )
    bench.add_argument(
        "--nodes",
        action="store_true",
        help="also time the nodes of each model in a decoding step, against a plain read of the "
        "weights, at the first number of threads and the first prompt",
    )


def _add_sizes(commands: argparse._SubParsersAction[_Parser]) -> None:
    sizes = commands.add_parser(
        "sizes",
        help="compute parameters and bytes of a model from its config alone",
        description="Computes what moe-export would write for a model, every expert at the same "
        "share of its width. Formats are those of experts, attention and lm_head, in groups of 32 "
        "(nf4: experts alone, the others in int4); all other tensors are float16.",
    )
    sizes.add_argument("config", type=Path, metavar="CONFIG", help="a config.json, or its folder")
    sizes.add_argument(
        "--keep",
        type=_share,
        nargs="+",
        default=[1.0, 0.75, 0.5],
        metavar="SHARE",
        help="shares of the width of experts to keep (default: 1 0.75 0.5)",
    )
    sizes.add_argument(
        "--formats",
        nargs="+",
        default=["float16", "int8", "int4"],
        metavar="FORMAT",
        help="float32, float16 or formats of quantized experts (default: float16 int8 int4)",
    )
    sizes.add_argument(
        "--context",
        type=_count,
        nargs="+",
        default=[4096, 32768],
        metavar="TOKENS",
        help="lengths of context whose KV cache is computed (default: 4096 32768)",
    )
    sizes.add_argument(
        "--top-k",
        type=int,
        nargs="+",
        default=[],
        metavar="K",
        help="experts per token, with active parameters (default: those of the model)",
    )


def _with_recipe(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    text: str,
    run: bool = True,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text)
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a recipe file (.yaml)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="change a key of the recipe, such as plan.keep=0.4; repeatable",
    )
    if run:
        parser.add_argument(
            "--run",
            "--directory",  # torchrun reads --run as an abbreviation of an option of its own
            dest="directory",
            type=Path,
            metavar="DIR",
            help="run directory (default: runs/ and the recipe's name)",
        )
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _threads(text: str) -> int:
    value = _count(text)
    if value > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{value} threads are more than {MOST_THREADS}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share above 0 and up to 1")
    return value
