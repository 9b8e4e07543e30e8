"""Loaders of checkpoints, which are given the pruned demo padded with zeros to one width."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tools.apps.applications import LIMITS, App, output_of
from tools.apps.environments import DRIVERS, python_environment, source_package
from tools.apps.exports import padded_twin
from tools.apps.questions import Questions

LLAMA_CPP = "llama-cpp-python==0.3.36"
"""Package whose source archive has llama.cpp with its converter."""


def _transformers(app: App, cache: Path, questions: Questions) -> list[str]:
    python = python_environment(cache / app.folder, app.packages)
    script = str(DRIVERS / "transformers_generate.py")
    command = [str(python), script, str(padded_twin(cache)), *LIMITS]
    return output_of(command, questions.texts).splitlines()


def _llama_cpp(app: App, cache: Path, questions: Questions) -> list[str]:  # noqa: ARG001 - as all
    python = python_environment(cache / app.folder, app.packages)
    converter = source_package(cache, LLAMA_CPP) / "vendor" / "llama.cpp"
    with tempfile.TemporaryDirectory() as temporary:
        out = str(Path(temporary) / "model.gguf")
        script = str(DRIVERS / "to_gguf.py")
        command = [str(python), script, str(padded_twin(cache)), out]
        return output_of(command, "", {"PYTHONPATH": str(converter)}).splitlines()


def _packages(transformers: str) -> tuple[str, ...]:
    """Packages of transformers, and those of the converter; an environment serves both."""
    return (f"transformers=={transformers}", "torch==2.13.0", "pyyaml", "numpy")


LOADERS = (
    App("transformers", "5.24.0", _packages("5.24.0"), _transformers, native=False),
    App("transformers", "4.57.6", _packages("4.57.6"), _transformers, native=False),
    App(
        "llama.cpp's converter",
        LLAMA_CPP.partition("==")[2],
        _packages("4.57.6"),
        _llama_cpp,
        result="converts",
    ),
)
"""Loaders in the order of the table, none of which knows moe-export."""
