"""Throughput of `moe-export serve` for many clients against one, with every answer compared."""

from __future__ import annotations

import argparse
from typing import Any

from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from tools.bench import serve
from tools.pages.page import rounded, write_page

INTRODUCTION = (
    "Made by `python -m tools.pages serve RUN`, which runs `python -m tools.bench.serve` on a run "
    "of the demo model. Prompts are those of all demo tasks, answers are greedy with at most "
    f"{serve.NEW_TOKENS} tokens. One client and all clients take turns. They run on the cores of "
    "the server, among other work of the machine."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the measurement."""
    serve.add_options(parser)


def make(arguments: argparse.Namespace) -> None:
    """Measures and writes the page."""
    data = rounded(serve.measured(arguments))
    write_page("serve", data, markdown(data))


def markdown(data: dict[str, Any]) -> str:
    """The page from its figures."""
    one, many = data["loads"]
    head = ["clients", "answered", "requests/s", "new tokens/s", "median s", "95 % within s"]
    rows = [
        [
            str(load["clients"]),
            str(load["answered"]),
            f"{load['requests_per_s']:.1f}",
            f"{load['new_tokens_per_s']:.0f}",
            f"{load['median_s']:.3f}",
            f"{load['p95_s']:.3f}",
        ]
        for load in (one, many)
    ]
    machine, installed = data["machine"], data["versions"]
    outcome = (
        f"{data['sent']} requests of {many['clients']} clients: {many['answered']} answered, "
        f"{data['equal']} with the text that a single client gets. Sharing steps gives "
        f"**{data['ratio']:.1f} times** the throughput of one client."
    )
    server = (
        f"Server: `moe-export serve RUN {' '.join(data['options'])}`; {machine['cpu']}, "
        f"{machine['cores']} cores, ONNX Runtime {installed.get('onnxruntime', 'unknown')}, "
        f"Python {installed['python']}."
    )
    title = "# Serving many clients"
    return "\n\n".join([title, INTRODUCTION, table(Table(head, rows)), outcome, server]) + "\n"
