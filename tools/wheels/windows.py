"""`python -m tools.wheels.windows WHEEL MODEL… --onnxruntime WHEEL`: exported folders in Wine.

The example in C is compiled for Windows by zig and runs each folder with the library of a wheel of
moe-export-ops and the ONNX Runtime of a wheel for Windows, as `pip download --platform win_amd64`
gets it. Its tokens have to be those that the code of the folder's card gives here. A folder in the
layout `packed` runs with the library alone, so that it cannot be left out unseen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from tools.arm.folder import run_card
from tools.wheels import findings, wine
from tools.wheels.platforms import PLATFORMS

EXAMPLE = Path(__file__).parents[2] / "examples" / "c"
RUNTIME = "onnxruntime.dll"
(PLATFORM,) = (platform for platform in PLATFORMS if platform.tag == "win_amd64")


def compile_example(onnxruntime: Path, folder: Path, cache: Path) -> Path:
    """Compiles the example, beside the ONNX Runtime that it loads; returns its file.

    Args:
        onnxruntime: Wheel of ONNX Runtime for Windows.
        folder: Folder for the program.
        cache: Folder of zig's cache.
    """
    with zipfile.ZipFile(onnxruntime) as archive:
        for name in archive.namelist():
            if name.startswith("onnxruntime/capi/") and name.endswith(".dll"):
                (folder / Path(name).name).write_bytes(archive.read(name))
    exports, imports = folder / "onnxruntime.def", folder / "onnxruntime.lib"
    exports.write_text(f"LIBRARY {RUNTIME}\nEXPORTS\nOrtGetApiBase\n", encoding="utf-8")
    words = ["-m", "i386:x86-64", "-d", str(exports), "-D", RUNTIME, "-l", str(imports)]
    wine.call_zig(["dlltool", *words], cache)
    program = folder / "generate_c.exe"
    words = [str(EXAMPLE / "generate.c"), str(imports), "-I", str(EXAMPLE / "include")]
    wine.compile_program(PLATFORM, words, program, cache)
    return program


def tokens_in_wine(program: list[str], prompt: list[int], count: int, prefix: Path) -> list[int]:
    """Tokens that the example gives after a prompt.

    Args:
        program: Words that start the example with a folder.
        prompt: Ids of the prompt.
        count: Number of tokens.
        prefix: Folder in which Wine keeps its files.

    Raises:
        subprocess.CalledProcessError: The example fails.
    """
    done = subprocess.run(
        [*program, str(count)],
        input=" ".join(map(str, prompt)) + "\n",
        capture_output=True,
        text=True,
        check=True,
        env=wine.environment(prefix),
    )
    return [int(word) for word in done.stdout.split()]


def compare(model: str, here: dict[str, Any], tokens: list[int]) -> None:
    """Compares the tokens with those of the folder's card here.

    Raises:
        RuntimeError: They differ.
    """
    if not tokens or tokens != here["answer"]:
        raise RuntimeError(f"{model}: tokens in Wine are {tokens}, expected {here['answer']}")


def with_library(model: Path, wheel: Path, copy: Path) -> Path:
    """Copies a folder, with the library for Windows alone."""
    shutil.copytree(model, copy, ignore=shutil.ignore_patterns("*moe_export_ops*"))
    (copy / PLATFORM.library).write_bytes(wine.library(wheel, PLATFORM))
    return copy


def check(found: wine.Wine, wheel: Path, models: list[Path], onnxruntime: Path) -> str:
    """Runs folders; returns a sentence about them."""
    # Wine's own processes end a little later than the program.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary).resolve()
        program = compile_example(onnxruntime, folder, found.cache)
        for model in models:
            here = run_card(model, [sys.executable], dict(os.environ))
            copy = with_library(model, wheel, folder / model.name)
            words = [found.program, str(program), str(copy)]
            tokens = tokens_in_wine(words, here["prompt"], len(here["answer"]), folder / "prefix")
            compare(model.name, here, tokens)
            print(f"{model.name}: {here['text'].strip()!r}, as here", flush=True)
    version = onnxruntime.name.split("-")[1]
    return f"{len(models)} folders, ONNX Runtime {version} for Windows: the tokens of Linux"


def main(words: list[str] | None = None) -> int:
    """Prints a line for each folder."""
    parser = argparse.ArgumentParser(prog="python -m tools.wheels.windows", description=__doc__)
    parser.add_argument("wheel", type=Path, help="moe-export-ops for win_amd64")
    parser.add_argument("models", nargs="+", type=Path, metavar="model", help="exported folder")
    parser.add_argument("--onnxruntime", type=Path, required=True, help="wheel for win_amd64")
    parser.add_argument("--cache", type=Path, default=Path("build/wheels/zig-cache"))
    parser.add_argument(
        "--findings", type=Path, metavar="FILE", help="file that `tools.pages platforms` reads"
    )
    arguments = parser.parse_args(words)
    found = wine.find(arguments.cache.resolve())
    if found is None:
        print(wine.MISSING, file=sys.stderr)
        return 1
    models = [model.resolve() for model in arguments.models]
    sentence = check(found, arguments.wheel, models, arguments.onnxruntime)
    findings.record(arguments.findings, PLATFORM.tag, {"windows": sentence})
    return 0


if __name__ == "__main__":
    sys.exit(main())
