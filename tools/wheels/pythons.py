"""`python -m tools.wheels.pythons WHEEL MODEL PYTHON…`: a wheel of moe-export-ops in many Pythons.

Each interpreter makes a fresh environment with the wheel, tokenizers and the newest ONNX Runtime
that the package index has for it; no compiler is on the path. The code of an exported folder's card
runs there as it stands. Its text has to be that of the interpreter that runs this, and the
processor's fastest kernel has to be taken.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tools.arm.folder import run_card
from tools.wheels import findings
from tools.wheels.check import FASTEST, expected_here
from tools.wheels.platforms import PLATFORMS

_VERSIONS = (
    "import importlib.metadata as m, platform as p; "
    "print('Python', p.python_version(), 'with onnxruntime', m.version('onnxruntime'))"
)


def install(wheel: Path, home: Path, python: str) -> tuple[list[str], dict[str, str]]:
    """Makes an environment; returns the words that start its Python, and its variables."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = "/nonexistent"
    command = [str(home / "bin" / "python")]
    options = ["-q", "--only-binary", ":all:", str(wheel.resolve()), "onnxruntime", "tokenizers"]
    for words in ([python, "-m", "venv", str(home)], [*command, "-m", "pip", "install", *options]):
        subprocess.run(words, check=True, env=environment)
    return command, environment


def compare(here: dict[str, Any], there: dict[str, Any], versions: str) -> None:
    """Compares what `card.py` printed here and in another Python.

    Raises:
        RuntimeError: Texts differ, another kernel ran than the processor has, or the installed
            library computes other logits than the folder's.
    """
    for what, found, expected in (
        ("kernel", there["kernel"], f"{expected_here()}: {FASTEST}"),
        ("text", there["text"], here["text"]),
        ("installed library's equality", there["installed_equal"], True),
    ):
        if found != expected:
            raise RuntimeError(f"{versions}: {what} is {found!r}, expected {expected!r}")


def check(wheel: Path, model: Path, pythons: list[str]) -> str:
    """Runs a folder in each Python; returns a sentence about them."""
    here = run_card(model, [sys.executable], dict(os.environ))
    names = []
    for python in pythons:
        with tempfile.TemporaryDirectory() as folder:
            command, environment = install(wheel, Path(folder).resolve(), python)
            asked = subprocess.run(
                [*command, "-c", _VERSIONS], check=True, capture_output=True, text=True
            )
            names.append(asked.stdout.strip())
            compare(here, run_card(model, command, environment), names[-1])
        print(f"{names[-1]}: {here['text'].strip()!r}, as here", flush=True)
    return f"{', '.join(names)}: the same text, by `{expected_here()}`"


def main(words: list[str] | None = None) -> int:
    """Prints a line for each Python."""
    parser = argparse.ArgumentParser(prog="python -m tools.wheels.pythons", description=__doc__)
    parser.add_argument("wheel", type=Path, help="wheel of moe-export-ops for this machine")
    parser.add_argument("model", type=Path, help="exported folder")
    parser.add_argument("pythons", nargs="+", metavar="python", help="interpreters")
    parser.add_argument(
        "--findings", type=Path, metavar="FILE", help="file that `tools.pages platforms` reads"
    )
    arguments = parser.parse_args(words)
    sentence = check(arguments.wheel, arguments.model.resolve(), arguments.pythons)
    tag = next(p.tag for p in PLATFORMS if arguments.wheel.stem.endswith(p.tag))
    findings.record(arguments.findings, tag, {"pythons": sentence})
    return 0


if __name__ == "__main__":
    sys.exit(main())
