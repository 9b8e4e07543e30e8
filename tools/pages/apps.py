"""Answers of exports in the applications of others, each version in an environment of its own."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from moe_export.system.machine import machine, versions
from tools.apps.applications import APPS
from tools.apps.exports import KINDS
from tools.apps.loaders import LOADERS
from tools.apps.measure import TWIN, measured
from tools.pages.page import write_page

INTRODUCTION = (
    "Made by `python -m tools.pages apps CACHE`, which installs every version in an environment of "
    "its own with pip or npm, asks it the 86 prompts of the demo's tasks, and compares its greedy "
    "answers token for token (`moe-export serve`: text for text) with our own decoding of the same "
    "export. `moe_export/ort/decoding.py` runs the operator that the application runs: that of the "
    "library where the application can register it and the export has it beside the model, else "
    "standard operators. The model is the demo, pruned to half of its expert dimensions."
)

EXPORTS = (
    "Exports: `int4` has experts in int4 and the rest in float32; `packed` is the same with "
    "`layout: packed`, which only the library can run; `without library` is float32 with "
    "`library: false`. ONNX Runtime 1.20.1 and older take no int4 as input of a custom operator; "
    "without the library 1.20.1 loads the int4 export, 1.18.1 does not. transformers.js reads the "
    "names that `export: {web: true}` writes, which a packed export does not have."
)

TEXT = (
    "ONNX Runtime, C and C++ are given token ids. onnxruntime-genai, Optimum, onnxruntime-node and "
    "transformers.js in Node are given texts, which their own tokenizers must turn into the same "
    "ids. C++ and Optimum answer in batches padded on the left. Pages in Chromium are given ids. "
    "Olive writes the model anew, and ONNX Runtime answers with what it wrote; its session tuning "
    "runs standard operators. Netron draws the graph."
)

TWIN_TEXT = (
    "Loaders of checkpoints get `prune/padded`, which `prune: {save_padded: true}` writes: the "
    "pruned demo with its experts filled up with zeros to one width. transformers answers in "
    "batches padded on the left, and is compared with our own decoding of the float32 export. The "
    "converter writes every weight to a GGUF file; it is told to take the pre-tokenizer of GPT-2, "
    "for it does not know the demo's. vLLM is not in the table: "
    "[loading-elsewhere.md](../guide/loading-elsewhere.md#the-padded-twin-beyond-onnx-runtime) "
    "says how the twin ran there by hand."
)

Cells: TypeAlias = dict[tuple[str, str], dict[str, str]]
"""Result by what was given, for each application and version."""

RESULTS = {app.result for app in (*APPS, *LOADERS)}
"""Words for what applications do that answer nothing."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the measurement."""
    names = sorted({app.name for app in (*APPS, *LOADERS)})
    parser.add_argument("cache", type=Path, help="folder of exports, environments and known rows")
    parser.add_argument(
        "--only", action="append", default=[], choices=names, help="run only this application"
    )
    parser.add_argument("--dry", action="store_true", help="print rows and leave the page alone")


def make(arguments: argparse.Namespace) -> None:
    """Measures and writes the page."""
    cache = arguments.cache.resolve()
    rows = measured(cache, arguments.only, _show)
    if not arguments.dry:
        data = {"rows": rows, "machine": machine(), "versions": versions()}
        write_page("apps", data, markdown(data))


def markdown(data: dict[str, Any]) -> str:
    """The page from its figures."""
    rows, on, installed = data["rows"], data["machine"], data["versions"]
    kinds = [kind.name for kind in KINDS]
    cells: Cells = {}
    for row in rows:
        cells.setdefault((row["app"], row["version"]), {})[row["export"]] = row["result"]
    notes = list(dict.fromkeys(r["result"] for r in rows if _is_message(r["result"])))
    where = (
        f"Measured on {on['cores']} cores of {on['cpu']}, {on['system']}, Python "
        f"{installed['python']}; our own decoding in ONNX Runtime "
        f"{installed.get('onnxruntime', 'unknown')}."
    )
    parts = [
        "# Exports in other applications",
        INTRODUCTION,
        table(Table(["application", "version", *kinds], _body(cells, kinds, notes))),
        "Numbers are equal answers of 86. Letters are what the application says:",
        _list(notes),
        EXPORTS,
        TEXT,
        TWIN_TEXT,
        table(Table(["loader", "version", TWIN], _body(cells, [TWIN], notes))),
        where,
    ]
    return "\n\n".join(parts) + "\n"


def _body(cells: Cells, given: list[str], notes: list[str]) -> list[list[str]]:
    """Rows of what was given any of the named exports or checkpoints."""
    return [
        [app, version, *(_cell(found.get(name), notes) for name in given)]
        for (app, version), found in cells.items()
        if not found.keys().isdisjoint(given)
    ]


def _is_message(result: str) -> bool:
    return result not in RESULTS and not result.endswith("equal")


def _cell(result: str | None, notes: list[str]) -> str:
    if result is None:
        return "not run"
    return chr(ord("a") + notes.index(result)) if _is_message(result) else result.split()[0]


def _list(notes: Iterable[str]) -> str:
    return "\n".join(f"- {chr(ord('a') + place)}: `{note}`" for place, note in enumerate(notes))


def _show(row: dict[str, str]) -> None:
    print(f"{row['app']} {row['version']}, {row['export']}: {row['result']}", flush=True)
