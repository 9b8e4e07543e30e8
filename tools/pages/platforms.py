"""States of the platforms: what was run, emulated or only built, as the checks found it."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from moe_export.system.machine import machine, versions
from tools.arm.native_tests import CHECK
from tools.pages import readme
from tools.pages.page import write_page
from tools.wheels import findings
from tools.wheels.platforms import PLATFORMS

INTRODUCTION = (
    "Made by `python -m tools.pages platforms FILE` from what the checks below wrote to FILE.\n\n"
    "*Run*: the wheel of moe-export-ops is installed into a fresh environment without a compiler "
    "on the path, and the kernel's name is held against the processor. *Emulated*: its library is "
    "loaded in qemu on Cortex-A72, Cortex-A76 and a processor with everything, that for Windows in "
    "Wine, and the names are held. *Built*: compiled and linked by zig; never loaded. *Not built*: "
    "not on this commit."
)

COMMANDS = """\
```
python -m tools.arm.system SYSTEM --tests       # Debian's Python and ONNX Runtime for Arm, no root
python -m tools.wheels --twice --sdist --arm-root SYSTEM/root --findings FILE
python -m tools.wheels.pythons dist/moe_export_ops-*x86_64.whl MODEL PYTHON... --findings FILE
python -m tools.wheels.main_job dist/moe_export-*x86_64.whl --findings FILE
python -m tools.arm.folder MODEL... --system SYSTEM --findings FILE \\
    --wheel dist/moe_export_ops-*aarch64.whl
python -m tools.wheels.windows dist/moe_export_ops-*win_amd64.whl MODEL... --findings FILE \\
    --onnxruntime onnxruntime-*win_amd64.whl
python -m tools.arm.native_tests SYSTEM dist/moe_export_ops-*aarch64.whl --findings FILE
```"""

CHECKS = {
    "twice": "a second build, from nothing and in another folder",
    "source": "the source archives of both projects",
    "pythons": "moe-export-ops in fresh environments, no compiler on the path, an exported folder "
    "run by the code of its card",
    "main job": "moe-export and its packages in a fresh environment, no compiler on the path",
    "folder": "folders exported on x86-64 for both, run by the code of their cards where only ONNX "
    "Runtime, tokenizers and moe-export-ops are installed",
    "windows": "folders exported on Linux, run in Wine by the example in C with ONNX Runtime for "
    "Windows and the wheel's library",
}
"""Checks with more to say than a word, and how each is described."""

STATES = ("run", "emulated", "built")

TOOLS = ("ziglang", "auditwheel", "scikit-build-core")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the file of findings."""
    parser.add_argument("findings", type=Path, help="file that the checks wrote")


def make(arguments: argparse.Namespace) -> None:
    """Writes the page."""
    data = {
        "findings": findings.read(arguments.findings),
        "machine": machine(),
        "versions": versions() | {name: version(name) for name in TOOLS},
    }
    write_page("platforms", data, markdown(data))
    readme.write("platforms", readme_table(data))


def readme_table(data: dict[str, Any]) -> str:
    """Platforms by state, in three columns."""
    found = data["findings"]
    columns = {state: _in_state(found, state) for state in STATES}
    return (
        f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n| {' | '.join(columns.values())} |"
    )


def _in_state(found: findings.Findings, state: str) -> str:
    names = [p.words for p in PLATFORMS if found.get(p.tag, {}).get("state") == state]
    return ", ".join(names) or "–"


def markdown(data: dict[str, Any]) -> str:
    """The page from its findings."""
    found, on, installed = data["findings"], data["machine"], data["versions"]
    head = ["platform", "state", "kernels", "auditwheel allows", "moe-export-ops"]
    rows = [[platform.tag, *_cells(found.get(platform.tag, {}))] for platform in PLATFORMS]
    notes = [
        f"- `{platform.tag}`, {note}"
        for platform in PLATFORMS
        for note in _notes(found.get(platform.tag, {}))
    ]
    tools = ", ".join(f"{name} {installed[name]}" for name in TOOLS)
    where = (
        f"Checked on {on['cores']} cores of {on['cpu']}, {on['system']}, Python "
        f"{installed['python']}; {tools}."
    )
    parts = [
        "# Platforms",
        INTRODUCTION,
        table(Table(head, rows)),
        *(["\n".join(notes)] if notes else []),
        "The checks:",
        COMMANDS,
        where,
    ]
    return "\n\n".join(parts) + "\n"


def _cells(found: dict[str, str]) -> list[str]:
    """State, kernels, verdict of auditwheel and size of a platform's wheel."""
    words = [found.get(name) or "–" for name in ("kernels", "auditwheel", "size")]
    return [found.get("state", "not built"), *words]


def _notes(found: dict[str, str]) -> list[str]:
    """Sentences about the checks that a platform had."""
    notes = [f"{words}: {found[name]}." for name, words in CHECKS.items() if name in found]
    files = [
        f"{name.removeprefix(CHECK)} {words}"
        for name, words in found.items()
        if name.startswith(CHECK)
    ]
    if files:
        notes.append(f"tests of the native library in emulation: {'; '.join(files)}.")
    return notes
