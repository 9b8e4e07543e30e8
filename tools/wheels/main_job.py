"""`python -m tools.wheels.main_job WHEEL`: the README's main job with an installed wheel.

A fresh environment gets the wheel of moe-export and, from the package index, what it asks for. Its
own programs alone are on the path, so that no compiler is found. A recipe runs there from beginning
to end, the pruned model answers, and `moe-export doctor` has to name the kernel of this processor.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.wheels import findings
from tools.wheels.check import FASTEST, expected_here
from tools.wheels.make import ROOT
from tools.wheels.platforms import PLATFORMS

COMPILERS = ("c++", "cc", "g++", "gcc", "clang", "clang++", "zig")
PROMPT, ANSWER = "Q: What is the capital of Norway?\nA:", "Oslo"
_UNWANTED = ("PYTHONPATH", "CC", "CXX", "VIRTUAL_ENV")


def install(wheel: Path, home: Path, python: str) -> dict[str, str]:
    """Installs a wheel with the extra `cpu` into a fresh environment.

    Args:
        wheel: Wheel of moe-export.
        home: Folder of the environment.
        python: Interpreter that makes it.

    Returns:
        Variables of processes there; the path has the environment's programs alone.

    Raises:
        RuntimeError: The packages bring a compiler, so that the check would show nothing.
    """
    subprocess.run([python, "-m", "venv", str(home)], check=True)
    environment = {key: value for key, value in os.environ.items() if key not in _UNWANTED}
    environment["PATH"] = str(home / "bin")
    options = ["-q", "--only-binary", ":all:", f"{wheel.resolve()}[cpu]"]
    _run(["python", "-m", "pip", "install", *options], environment, home)
    for name in COMPILERS:
        if shutil.which(name, path=environment["PATH"]):
            raise RuntimeError(f"the compiler {name} is in the fresh environment")
    return environment


def main_job(environment: dict[str, str], home: Path, recipe: Path) -> dict[str, str]:
    """Runs a recipe, a question and `doctor`; returns findings by name.

    Raises:
        RuntimeError: A command fails, the answer is wrong, or `doctor` names another kernel.
    """
    run = str(home / "run")
    _run(["moe-export", "run", str(recipe), "--run", run], environment, home)
    answer = _run(["moe-export", "generate", run, "--prompt", PROMPT], environment, home)
    if ANSWER not in answer:
        raise RuntimeError(f"asked {PROMPT!r}, the model says {answer!r}, expected {ANSWER!r}")
    lines = _run(["moe-export", "doctor"], environment, home).splitlines()
    found = dict(line.split(maxsplit=1) for line in lines)
    library = next(line for line in lines if line.startswith("native library")).split()[-1]
    expected = f"{expected_here()}: {FASTEST}"
    if found["kernel"] != expected or not library.startswith(str(home)):
        raise RuntimeError(f"doctor says {found['kernel']!r} of {library}, expected {expected!r}")
    return {
        "main job": (
            f"`{recipe.name}` runs, the model answers, doctor names `{expected_here()}` "
            f"(Python {found['python']}, torch {found['torch']}, "
            f"onnxruntime {found['onnxruntime']})"
        )
    }


def _run(command: list[str], environment: dict[str, str], home: Path) -> str:
    """Output of a program of the fresh environment, run outside the checkout."""
    program = str(home / "bin" / command[0])
    done = subprocess.run(
        [program, *command[1:]],
        capture_output=True,
        text=True,
        env=environment,
        cwd=home,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr}")
    return done.stdout


def main(words: list[str] | None = None) -> int:
    """Installs, runs and prints what was found."""
    parser = argparse.ArgumentParser(prog="python -m tools.wheels.main_job", description=__doc__)
    parser.add_argument("wheel", type=Path, help="wheel of moe-export for this machine")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "demo_50pct.yaml")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument(
        "--findings", type=Path, metavar="FILE", help="file that `tools.pages platforms` reads"
    )
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        environment = install(arguments.wheel, home, arguments.python)
        found = main_job(environment, home, arguments.recipe.resolve())
    print(found["main job"])
    tag = next(p.tag for p in PLATFORMS if arguments.wheel.stem.endswith(p.tag))
    findings.record(arguments.findings, tag, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
