"""The run of the parts, each in a process of its own, and the result that is written."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from moe_export.gpu_check.apart import Apart, ApartError
from moe_export.gpu_check.parts import PARTS, too_late
from moe_export.gpu_check.targets import verdicts
from moe_export.system.machine import machine, versions


class Check:
    """The requested parts, and their results so far.

    Args:
        obstacles: Part to the reason why it cannot run, None if it can; in the order of running.
        minutes: Time for all parts together.
        model_layers: Two numbers of layers of the whole models.
        out: File that the result is written to after each part; None for no file.

    Attributes:
        obstacles: The same, with reasons that came up during the run.
        result: Content of the file: machine, versions, rows of each part, and targets.
        held: True if all checks so far held.
    """

    def __init__(
        self,
        obstacles: dict[str, str | None],
        minutes: float,
        model_layers: tuple[int, ...],
        out: Path | None,
    ) -> None:
        self.obstacles, self._model_layers, self._out = dict(obstacles), model_layers, out
        self._end = time.monotonic() + minutes * 60
        self.result: dict[str, Any] = {"machine": machine(), "versions": versions(), "parts": {}}
        self.held = True

    def run(self, folder: str) -> None:
        """Runs the parts in order; a part that is still being prepared lets the next ones go first.

        Args:
            folder: Folder for the files of the parts.
        """
        ahead: dict[str, Apart] = {}
        for name in self.obstacles:
            part = PARTS[name]
            if part.ahead is not None and self.obstacles[name] is None:
                ahead[name] = self._apart(name, part.ahead, folder)
        try:
            left = list(self.obstacles)
            while left:
                ready = (name for name in left if name not in ahead or ahead[name].is_ready)
                name = next(ready, left[0])
                left.remove(name)
                print(f"== {name}", flush=True)
                self._part(name, folder, ahead.get(name))
                self.write()
        finally:
            for work in ahead.values():
                work.end()

    def _part(self, name: str, folder: str, prepared: Apart | None) -> None:
        left_s = self._end - time.monotonic()
        self.obstacles[name] = self.obstacles[name] or too_late(name, left_s / 60)
        if self.obstacles[name] is not None:
            self.result["parts"][name] = {"not_run": self.obstacles[name]}
            print(f"not run: {self.obstacles[name]}")
            return
        started = time.monotonic()
        try:
            if prepared is not None:
                prepared.result(left_s)
            work = self._apart(name, PARTS[name].function, folder)
            rows = work.result(max(0.0, self._end - time.monotonic()))
        except ApartError as error:
            rows = [{"part": name, "failed": str(error), "held": False}]
        self.held &= all(row.get("held", True) for row in rows)
        wall_s = time.monotonic() - started
        self.result["parts"][name] = {"rows": rows, "wall_s": round(wall_s, 1)}
        print_table(rows)
        print(f"{wall_s:.0f} s, the guess was {PARTS[name].minutes * 60:.0f}", flush=True)

    def _apart(self, name: str, function: str, folder: str) -> Apart:
        part = PARTS[name]
        arguments = (folder, self._model_layers) if part.ahead is not None else ()
        return Apart(part.module, function, *arguments)

    def write(self) -> None:
        """Writes the result so far, with the targets as they stand."""
        self.result["targets"] = verdicts(
            {name: part["rows"] for name, part in self.result["parts"].items() if "rows" in part}
        )
        if self._out is not None:
            text = json.dumps(self.result, indent=1) + "\n"
            self._out.write_text(text, encoding="utf-8")


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints rows as a table; its columns are the keys of all rows, in order of appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
