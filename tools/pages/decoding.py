"""Speed of prompts, of the KV cache and of several tokens in a step, each against what it replaces.

    python -m tools.pages decoding SHAPES --name WORDS MODEL=FILE[@TOKENS] ...

SHAPES is an exported model of real shapes, whose weights may be random. Each MODEL is an exported
model that continues windows of the text FILE, of 100 tokens or as many as are given. All is
measured on one thread, in processor time, and what is compared takes turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.documents.tokens import TextTokenizer
from moe_export.ort.decoding import StaticCache, generate, open_cache
from moe_export.ort.session import OrtModel
from moe_export.ort.speculation import Speculation
from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from moe_export.system.machine import machine, versions
from tools.pages.page import rounded, write_page

PROMPTS = (128, 512)
CONTEXTS = (64, 1024)
STEPS = (1, 2, 3, 4, 5, 9)
STEP_CONTEXTS = (64, 1024)
ROUNDS, ROUND_TOKENS = 3, 12

Turns = Mapping[Any, Callable[[], object]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the measurement."""
    parser.add_argument("shapes", type=Path, metavar="SHAPES", help="exported model of real shapes")
    parser.add_argument(
        "texts", nargs="+", metavar="MODEL=FILE[@TOKENS]", help="model and text it continues"
    )
    parser.add_argument("--name", required=True, help="words for SHAPES on the page")
    parser.add_argument("--windows", type=int, default=12, help="of each text (default: 12)")
    parser.add_argument("--new-tokens", type=int, default=100, help="behind it (default: 100)")


def make(arguments: argparse.Namespace) -> None:
    """Measures and writes the page."""
    data = rounded(measured(arguments))
    write_page("decoding", data, markdown(data))


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of the page."""
    caches = {kind: OrtModel(arguments.shapes, threads=1, cache=kind) for kind in CACHES}
    return {
        "name": arguments.name,
        "machine": machine(),
        "versions": versions(),
        "prompts": [_prompt(caches["static"], tokens) for tokens in PROMPTS],
        "caches": [_caches(caches, tokens) for tokens in CONTEXTS],
        "steps": [_steps(caches["static"], tokens) for tokens in STEP_CONTEXTS],
        "texts": [_text(word, arguments) for word in arguments.texts],
    }


CACHES = ("growing", "static")


def _prompt(model: OrtModel, tokens: int) -> dict[str, Any]:
    ids, mask = _random(model, (1, tokens)), np.ones((1, tokens), np.int64)

    def run(*, last_only: bool) -> Callable[[], object]:
        return lambda: model.step(ids, mask, model.empty_cache(1), last_only=last_only)

    times = _turns({"all": run(last_only=False), "last": run(last_only=True)})
    rates = {name: [tokens / seconds for seconds in spent] for name, spent in times.items()}
    return {"tokens": tokens, **_compared(rates)}


def _caches(models: Mapping[str, OrtModel], tokens: int) -> dict[str, Any]:
    room = tokens + ROUND_TOKENS * (ROUNDS + 1) + 1

    def rounds(model: OrtModel) -> Callable[[], object]:
        cache = open_cache(model, 1, room)
        cache.prompt(_random(model, (1, tokens)))
        return lambda: [cache.token(_random(model, (1,))) for _ in range(ROUND_TOKENS)]

    times = _turns({kind: rounds(model) for kind, model in models.items()})
    rates = {kind: [ROUND_TOKENS / seconds for seconds in spent] for kind, spent in times.items()}
    return {"tokens": tokens, **_compared(rates)}


def _steps(model: OrtModel, tokens: int) -> dict[str, Any]:
    cache = StaticCache(model, 1, tokens + max(STEPS))
    cache.prompt(_random(model, (1, tokens)))

    def step(count: int) -> Callable[[], object]:
        def run() -> None:
            if count == 1:
                cache.token(_random(model, (1,)))
            else:
                cache.extend(_random(model, (count,)).tolist())
            cache.drop(count)

        return run

    times = _turns({count: step(count) for count in STEPS})
    of_one = {
        str(count): statistics.median(own / one for own, one in zip(spent, times[1], strict=True))
        for count, spent in times.items()
    }
    return {"tokens": tokens, "of_one": of_one}


def _text(word: str, arguments: argparse.Namespace) -> dict[str, Any]:
    place, _, rest = word.rpartition("=")
    file, _, given = rest.partition("@")
    model, tokenizer = OrtModel(Path(place), threads=1), TextTokenizer(Path(place))
    ids = tokenizer.encode_text(Path(file).read_text(encoding="utf-8"))
    size, new = int(given or 100), arguments.new_tokens
    apart = max((len(ids) - size) // arguments.windows, 1)
    spent, drafted, accepted, differ = {"one": 0.0, "drafts": 0.0}, 0, 0, 0
    for window in range(arguments.windows):
        prompt = ids[window * apart : window * apart + size]
        speculation = Speculation(prompt)
        found = {}
        for name, drafts in (("one", None), ("drafts", speculation)):
            started = time.process_time()
            found[name] = list(generate(model, prompt, new, [], drafts))
            spent[name] += time.process_time() - started
        drafted, accepted = drafted + speculation.drafted, accepted + speculation.accepted
        differ += found["one"] != found["drafts"]
    return {
        "model": Path(place).name,
        "text": Path(file).stem,
        "windows": arguments.windows,
        "prompt_tokens": size,
        "new_tokens": new,
        "drafted": drafted,
        "accepted": accepted,
        "differ": differ,
        "speed": spent["one"] / spent["drafts"],
    }


def _random(model: OrtModel, shape: tuple[int, ...]) -> Any:
    vocabulary = model.session.get_outputs()[0].shape[-1]
    return _RANDOM.integers(0, vocabulary, shape)


_RANDOM = np.random.default_rng(0)


def _turns(runs: Turns) -> dict[Any, list[float]]:
    """Processor seconds of each run in every round; the first, which warms up, is left out."""
    times: dict[Any, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            times[name].append(time.process_time() - started)
    return {name: spent[1:] for name, spent in times.items()}


def _compared(rates: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians of two rates, and the spread of the ratios of the second to the first by rounds."""
    first, second = rates.values()
    ratios = [new / old for old, new in zip(first, second, strict=True)]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    spread = [min(ratios), statistics.median(ratios), max(ratios)]
    return {"tokens_per_s": medians, "ratio": spread}


def markdown(data: Mapping[str, Any]) -> str:
    """The page from its figures."""
    held, installed = data["machine"], data["versions"]
    where = (
        f"{held['cpu']}, {held['cores']} cores, one thread, ONNX Runtime "
        f"{installed.get('onnxruntime', 'unknown')}. Processor time on a machine with other work; "
        f"what is compared takes turns, and ratios are medians over {ROUNDS} rounds [range]."
    )
    steps = Table(
        ["context", *(f"{count} tokens" for count in STEPS)],
        [
            [str(row["tokens"]), *(f"{row['of_one'][str(count)]:.2f}" for count in STEPS)]
            for row in data["steps"]
        ],
    )
    parts = [
        "# Prompts, cache and several tokens in a step",
        (
            "Made by `python -m tools.pages decoding`. Model of the first three tables: "
            f"{data['name']}. {where}"
        ),
        (
            "## Logits of the last position\n\nA prompt with logits at all positions, and of the "
            "last "
            "one alone (`logits_from`), in tokens/s."
        ),
        table(_rates("prompt", ("all", "last"), data["prompts"])),
        (
            "## A cache that is updated in place\n\nDecoding with the cache that every step "
            "copies, "
            "and with the one updated in place (`validate.cache`), in tokens/s."
        ),
        table(_rates("context", CACHES, data["caches"])),
        (
            "## Several tokens in a step\n\nTime of a step of several tokens, in steps of one. "
            "A step "
            "with a draft pays if it gives more tokens than that."
        ),
        table(steps),
        (
            "Drafts of `--speculate` on texts: windows of a text are prompts, which the model "
            "continues greedily, one by one and with drafts. Where the tokens differ, a sum that "
            "differs in the last bit has been rounded to another int8 or float16 and two tokens "
            "nearly tie."
        ),
        table(_texts(data["texts"])),
    ]
    return "\n\n".join(parts) + "\n"


def _rates(of: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = [
        [
            str(row["tokens"]),
            *(f"{row['tokens_per_s'][name]:.3g}" for name in names),
            "{1:.2f} [{0:.2f}–{2:.2f}]".format(*row["ratio"]),
        ]
        for row in rows
    ]
    return Table([of, *names, "ratio"], cells)


def _texts(rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = [
        [
            row["model"],
            row["text"],
            f"{row['windows']} × ({row['prompt_tokens']} + {row['new_tokens']})",
            f"{row['accepted']} of {row['drafted']}",
            f"{row['accepted'] / (row['windows'] * row['new_tokens']):.2f}",
            f"{row['speed']:.2f}",
            str(row["differ"]),
        ]
        for row in rows
    ]
    head = ["model", "text", "tokens", "accepted", "of new tokens", "speed", "texts that differ"]
    return Table(head, cells)
