"""Applications that load an export: what each installs, and how it answers the questions."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.apps.answers import END, NEW_TOKENS
from tools.apps.environments import (
    DRIVERS,
    EXAMPLES,
    library_of,
    node_environment,
    programs,
    python_environment,
)
from tools.apps.questions import Questions
from tools.apps.site import site, web_server
from tools.bench.serve import serving

ROOT = Path(__file__).parents[2]
LIMIT_S = 600
LIMITS = (str(NEW_TOKENS), str(END))
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


class AppError(Exception):
    """An application's own last words."""


@dataclass(frozen=True)
class App:
    """A version of an application.

    Attributes:
        name: Name in the table.
        version: Version in the table.
        packages: Packages that are installed for it.
        answers: Function that returns what it prints to the questions, one line per prompt.
        native: True if it runs the operator library where that is beside the model.
        prints_texts: True if answers are texts and not token ids.
        result: Word for what it does with a model, if it does not answer with it.
    """

    name: str
    version: str
    packages: tuple[str, ...]
    answers: Callable[[App, Path, Questions], list[str]]
    native: bool = True
    prints_texts: bool = False
    result: str | None = None

    @property
    def folder(self) -> str:
        """Name of its environment's folder, which applications with equal packages share."""
        kind = "npm" if self.answers in (_node, _transformers_js, _web, _web_transformers) else "py"
        words = [word for word in self.packages if "==" in word or "@" in word]
        return "_".join((kind, *words)).replace("==", "-").replace("/", "-")


def output_of(command: list[str], questions: str, environment: dict[str, str] | None = None) -> str:
    """Output of a command that is given the questions.

    Raises:
        AppError: It fails.
    """
    try:
        done = subprocess.run(
            command,
            input=questions,
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AppError(f"no end within {LIMIT_S} s") from error
    if done.returncode:
        raise AppError(done.stderr)
    return done.stdout


def _onnx_runtime(app: App, cache: Path, questions: Questions) -> list[str]:
    python = python_environment(cache / app.folder, app.packages)
    command = [str(python), str(DRIVERS / "onnx_runtime.py"), str(questions.folder)]
    command += [str(EXAMPLES / "load_in_onnxruntime.py"), *LIMITS]
    return output_of(command, questions.ids).splitlines()


def _c(app: App, cache: Path, questions: Questions) -> list[str]:
    library = library_of(python_environment(cache / app.folder, app.packages))
    folder = programs(cache / f"programs-{app.version}", library)
    program = {"C": "generate_c", "C++": "generate_cpp"}[app.name]
    command = [str(folder / program), str(questions.folder), *LIMITS]
    return output_of(command, questions.ids).splitlines()


def _genai(app: App, cache: Path, questions: Questions) -> list[str]:
    python = python_environment(cache / app.folder, app.packages)
    command = [str(python), str(DRIVERS / "genai.py"), str(questions.folder), str(NEW_TOKENS)]
    return output_of(command, questions.texts).splitlines()


def _optimum(app: App, cache: Path, questions: Questions) -> list[str]:
    python = python_environment(cache / app.folder, app.packages)
    command = [
        str(python),
        str(DRIVERS / "transformers_generate.py"),
        str(questions.folder),
        *LIMITS,
    ]
    return output_of(command, questions.texts, {"PYTHONPATH": str(ROOT)}).splitlines()


def _openai(app: App, cache: Path, questions: Questions) -> list[str]:
    python = python_environment(cache / app.folder, app.packages)
    library = questions.folder / "libmoe_export_ops.so"
    operator = [] if library.exists() else ["--operator", "portable"]
    with serving(questions.folder, operator) as url:
        command = [str(python), str(DRIVERS / "openai_client.py"), url, str(NEW_TOKENS)]
        return output_of(command, questions.texts).splitlines()


def _node(app: App, cache: Path, questions: Questions) -> list[str]:
    folder = node_environment(cache / app.folder, app.packages)
    command = ["node", str(folder / "node_texts.mjs"), str(questions.folder), *LIMITS]
    return output_of(command, questions.texts).splitlines()


def _transformers_js(app: App, cache: Path, questions: Questions) -> list[str]:
    folder = node_environment(cache / app.folder, app.packages)
    command = ["node", str(folder / "transformers_js.mjs"), str(questions.folder), str(NEW_TOKENS)]
    return output_of(command, questions.texts).splitlines()


def _in_chromium(app: App, cache: Path, questions: Questions, page: str) -> list[str]:
    packages = node_environment(cache / app.folder, app.packages)
    with web_server(site(packages, questions.folder)) as url:
        command = [*_chromium(cache, "chromium.mjs"), f"{url}/web/{page}"]
        return output_of(command, questions.ids).splitlines()


def _chromium(cache: Path, script: str) -> list[str]:
    """Command that gives Chromium to a script of ours."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        raise AppError("Chromium is not installed here")
    driver = node_environment(cache / "npm_puppeteer-core", ("puppeteer-core@25",))
    return ["node", str(driver / script), chromium]


def _web(app: App, cache: Path, questions: Questions) -> list[str]:
    return _in_chromium(app, cache, questions, "index.html")


def _web_transformers(app: App, cache: Path, questions: Questions) -> list[str]:
    return _in_chromium(app, cache, questions, "transformers_js.html")


def _netron(app: App, cache: Path, questions: Questions) -> list[str]:
    python = python_environment(cache / app.folder, app.packages)
    command = [str(python), str(DRIVERS / "netron_open.py"), str(questions.folder)]
    return output_of([*command, *_chromium(cache, "netron.mjs")], "").splitlines()


def _olive(app: App, cache: Path, questions: Questions) -> list[str]:
    """Answers of ONNX Runtime with the model that a pass of Olive writes."""
    python = python_environment(cache / app.folder, app.packages)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "model"
        command = [str(python), str(DRIVERS / "olive_pass.py"), str(questions.folder), str(out)]
        output_of(command, "")
        command = [str(python), str(DRIVERS / "onnx_runtime.py"), str(out)]
        command += [str(EXAMPLES / "load_in_onnxruntime.py"), *LIMITS]
        return output_of(command, questions.ids).splitlines()


def _olive_tuning(app: App, cache: Path, questions: Questions) -> list[str]:
    python = python_environment(cache / app.folder, app.packages)
    command = [str(python), str(DRIVERS / "olive_tuning.py"), str(questions.folder)]
    return output_of(command, "").splitlines()


def _runtime(name: str, version: str, numpy: str = "numpy") -> App:
    packages = (f"onnxruntime=={version}", numpy, "tokenizers")
    return App(name, version, packages, _onnx_runtime if name == "ONNX Runtime" else _c)


def _js(name: str, version: str, answers: Callable[[App, Path, Questions], list[str]]) -> App:
    package = name.split(" ", maxsplit=1)[0].replace("transformers.js", "@huggingface/transformers")
    packages = (f"{package}@{version}", "@huggingface/tokenizers@0.2.0")
    return App(name, version, packages, answers, native=False)


OPTIMUM = (
    *("optimum==2.1.0", "optimum-onnx==0.1.0", "transformers==4.57.6", "onnxruntime==1.32.0"),
    *("torch==2.13.0", "onnx-ir>=1.1,<2", "pydantic", "pyyaml", "ml-dtypes", "numpy"),
)

OLIVE = ("olive-ai==0.13.0", "onnxruntime==1.32.0", "requests", "psutil", "numpy", "tokenizers")

APPS = (
    _runtime("ONNX Runtime", "1.32.0"),
    _runtime("ONNX Runtime", "1.22.1"),
    _runtime("ONNX Runtime", "1.18.1", "numpy<2"),
    _runtime("C", "1.32.0"),
    _runtime("C", "1.22.1"),
    _runtime("C++", "1.32.0"),
    _runtime("C++", "1.22.1"),
    App(
        "onnxruntime-genai",
        "0.18.0",
        ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "numpy"),
        _genai,
    ),
    App(
        "onnxruntime-genai",
        "0.9.2",
        ("onnxruntime-genai==0.9.2", "onnxruntime==1.22.1", "numpy"),
        _genai,
    ),
    App("Optimum", "2.1.0", OPTIMUM, _optimum),
    App("moe-export serve, openai", "3.57.0", ("openai==3.57.0",), _openai, prints_texts=True),
    App("moe-export serve, openai", "1.60.0", ("openai==1.60.0",), _openai, prints_texts=True),
    _js("onnxruntime-node", "1.30.0", _node),
    _js("onnxruntime-node", "1.22.0", _node),
    _js("onnxruntime-web in Chromium", "1.30.0", _web),
    _js("onnxruntime-web in Chromium", "1.22.0", _web),
    _js("transformers.js in Node", "4.3.2", _transformers_js),
    _js("transformers.js in Node", "4.0.0", _transformers_js),
    _js("transformers.js in Node", "3.8.1", _transformers_js),
    _js("transformers.js in Chromium", "4.3.2", _web_transformers),
    App("Olive, peephole pass", "0.13.0", OLIVE, _olive),
    App("Olive, session tuning", "0.13.0", OLIVE, _olive_tuning, result="tunes"),
    App("Netron", "9.3.3", ("netron==9.3.3",), _netron, result="opens"),
)
"""Applications in the order of the table: the newest version first, then the oldest that works. One
older version of transformers.js shows why it does not."""
