"""Rows of the table: each application with each export, kept in a file as soon as it is known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_export.system.digests import file_sha256
from tools.apps.applications import APPS, App, AppError
from tools.apps.exports import make_exports, padded_twin
from tools.apps.loaders import LOADERS
from tools.apps.questions import Questions

TWIN = "padded twin"
"""Name of the padded checkpoint in rows."""

LONGEST = 200
"""Characters of an application's message that the table shows."""


@dataclass(frozen=True)
class _Task:
    """An application and what it is given.

    Attributes:
        app: Application.
        given: Name of the export or checkpoint.
        digest: Digest of the export or checkpoint.
        questions: Prompts and expected answers.
    """

    app: App
    given: str
    digest: str
    questions: Questions


def measured(
    cache: Path, names: list[str], show: Callable[[dict[str, str]], None]
) -> list[dict[str, str]]:
    """Rows of all applications with all exports, and of all loaders with the padded twin.

    A row that is in the cache is not made again unless its export has other bytes.

    Args:
        cache: Folder of exports, environments and rows.
        names: Applications that are run; all if empty. Of others only known rows are returned.
        show: Function that is called with each new row.
    """
    rows = []
    for task in _tasks(cache):
        path = cache / "rows" / f"{slug(task.app.name)}-{task.app.version}-{slug(task.given)}.json"
        known = _read(path)
        if known is not None and known["export"] == task.digest:
            rows.append(known["row"])
        elif not names or task.app.name in names:
            row = {
                "app": task.app.name,
                "version": task.app.version,
                "export": task.given,
                "result": outcome(task.app, cache, task.questions),
            }
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"export": task.digest, "row": row}))
            show(row)
            rows.append(row)
    return rows


def _tasks(cache: Path) -> Iterator[_Task]:
    """Applications with each export, then loaders with the padded twin."""
    exports = list(make_exports(cache))
    for app in APPS:
        for kind, folder in exports:
            questions = Questions(folder, kind.layout == "packed")
            yield _Task(app, kind.name, file_sha256(folder / "model.onnx"), questions)
    shards = sorted(padded_twin(cache).glob("*.safetensors"))
    digest = " ".join(map(file_sha256, shards))
    for app in LOADERS:
        yield _Task(app, TWIN, digest, Questions(exports[0][1], packed=False))


def outcome(app: App, cache: Path, questions: Questions) -> str:
    """Number of answers equal to those of our own decoding, or an application's message."""
    try:
        answers = app.answers(app, cache, questions)
    except (AppError, OSError) as error:
        return message(str(error))
    if app.result is not None:
        return app.result
    native = app.native and (questions.folder / "libmoe_export_ops.so").exists()
    expected = questions.expected_texts() if app.prints_texts else questions.expected_ids(native)
    if len(answers) != len(expected):
        return f"{len(answers)} answers to {len(expected)} prompts"
    equal = sum(map(str.__eq__, answers, expected))
    return f"{equal} of {len(expected)} equal"


def message(words: str) -> str:
    """The line of an application's last words that names the error, without folders.

    >>> message("Fail: Load model from /models/a/model.onnx failed")
    'Fail: Load model from model.onnx failed'
    """
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"error|fail|not |exception", line, re.IGNORECASE)]
    line = (named or lines or ["no message"])[-1]
    line = re.sub(r"(?:file:)?/\S*/", "", line).replace("|", "/").replace("`", "'")
    # The beginning of a long line is where the error passed through, the end is the error.
    return line if len(line) <= LONGEST else "…" + line[1 - LONGEST :]


def slug(name: str) -> str:
    """Name of an application for a file.

    >>> slug("moe-export serve, openai")
    'moe-export_serve_openai'
    """
    return re.sub(r"[^\w+-]+", "_", name)


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None
