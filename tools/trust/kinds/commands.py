"""Command lines: words of every command with values that do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from tools.trust.kinds.base import Case
from tools.trust.kinds.runs import Runs

NUMBERS = ("0", "-1", "1", "2", "1e3", "1.5", "nan", "inf", "9" * 30, "", "x", "0x10", "٣", "1 2")
PATHS = (
    "run",
    "run/",
    "run/export",
    "run/export/quantized",
    "model",
    "recipe.yaml",
    "rows.jsonl",
    "absent",
    "",
    "/",
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    "a" * 300,
    "a\nb",
    "\x1b[31mred",
    "\udcff",
    "run/../run",
    "model/config.json",
)
TEXTS = ("", "x", "The number", "a\udcffb", "\x1b[2J", "x" * 5000, "ü🦀", "\u2028", "--prompt")
STAGES = ("calibrate", "plan", "export", "report", "quantise", "", "plan\n", "ALL")
WORDS = {
    "--from": STAGES,
    "--until": STAGES,
    "--threads": NUMBERS,
    "--run": PATHS,
    "--directory": PATHS,
    "--set": ("plan.keep=0.4", "plan", "=", "plan.keep=", "plan.keep=[", "a.b=1", "plan.keep=9"),
    "--prompt": TEXTS,
    "--new-tokens": NUMBERS,
    "--variant": ("pruned", "quantized", "baseline", "x", ""),
    "--provider": ("cpu", "cuda", "x"),
    "--operator": ("native", "portable", "x"),
    "--cache": ("growing", "static", "captured", "x"),
    "--against": PATHS,
    "--write": ("absent/x", "run/x.json", "kept.json", "", "/dev/full", "a" * 300),
    "--json": ("out.json", "absent/x", "/dev/full", "", "run"),
    "--html": ("out.html", "absent/x", "/dev/full", ""),
    "--keep": NUMBERS,
    "--formats": ("int4", "float16", "x", "", "nf4"),
    "--port": NUMBERS,
    "--rows": NUMBERS,
    "--context": NUMBERS,
}
COMMANDS = {
    "run": ("--run", "--directory", "--from", "--until", "--threads", "--set", "--dry-run"),
    "status": ("--run", "--threads", "--set"),
    "show": ("--set",),
    "plan": ("--run", "--threads", "--set"),
    "sweep": ("--set", "--threads", "--run"),
    "compare": ("--json", "--html"),
    "generate": ("--prompt", "--new-tokens", "--variant", "--provider", "--operator", "--cache"),
    "verify": ("--against", "--write"),
    "sizes": ("--keep", "--formats"),
    "serve": ("--port", "--rows", "--context", "--variant", "--provider"),
    "doctor": (),
    "x": (),
}
OF_RECIPES = ("run", "status", "show", "plan", "sweep")


class CommandLines(Runs):
    """Whatever the words, the folder of the run is still one that `verify` passes, or is new."""

    NAME = "command lines"
    WHAT = "words and values of every command"
    SHARE = 0.6

    def case(self, random: Random, place: Path) -> Case:
        shutil.copytree(self.base, place, dirs_exist_ok=True)
        command = random.choice(sorted(COMMANDS))
        words = [command]
        if random.random() < 0.95:
            usual = "recipe.yaml" if command in OF_RECIPES else "run"
            words.append(usual if random.random() < 0.6 else random.choice(PATHS))
        if command == "serve":  # it would serve until it is stopped
            words[1:] = [random.choice(("absent", "model", "recipe.yaml", "a\nb"))]
        for option in random.sample(COMMANDS[command], k=min(2, len(COMMANDS[command]))):
            words.append(option)
            if option != "--dry-run" and random.random() < 0.97:
                words.append(random.choice(WORDS[option]))
        if random.random() < 0.05:
            words.append(random.choice(TEXTS))
        return Case(" ".join(map(ascii, words)), [words])
