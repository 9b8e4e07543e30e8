"""Loads a server with many clients and compares every answer with that of a single client.

    python -m tools.bench.serve runs/demo --clients 64 --requests 20

It starts `moe-export serve RUN` on a free port of 127.0.0.1. One client first sends every prompt of
the demo tasks alone; then all clients send theirs at once, each one after the other. Clients are
those of the package `openai`, run in this process, and take time of the same processor cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_export.demo.tasks import KINDS, test_items
from moe_export.system.machine import machine, versions

if TYPE_CHECKING:
    import openai

NEW_TOKENS = 32
TIMEOUT_S = 600


@contextmanager
def serving(run: Path, options: list[str]) -> Iterator[str]:
    """URL of a server that runs within the block."""
    command = [sys.executable, "-m", "moe_export", "serve", str(run), "--name", "demo"]
    command += ["--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(f"the server ended with code {process.wait()}")
        try:
            yield line.split()[-1]
        finally:
            process.terminate()


def prompts(count: int) -> list[str]:
    """Prompts of all demo tasks in turn, `count` of each task."""
    items = [test_items(kind, count) for kind in KINDS]
    return [document.prompt for group in zip(*items, strict=True) for document in group]


async def ask(client: openai.AsyncOpenAI, prompt: str, new_tokens: int) -> tuple[str, int, float]:
    """Greedy answer, its number of tokens, and the time it took in seconds."""
    started = time.perf_counter()
    made = await client.completions.create(
        model="demo", prompt=prompt, max_tokens=new_tokens, temperature=0
    )
    assert made.usage is not None
    seconds = time.perf_counter() - started
    return made.choices[0].text, made.usage.completion_tokens, seconds


async def load(
    url: str, clients: list[list[str]], new_tokens: int = NEW_TOKENS
) -> tuple[list[list[str]], dict[str, Any]]:
    """Sends the prompts of every client, one after the other, all clients at once.

    Args:
        url: Address of the server.
        clients: Prompts of each client.
        new_tokens: Largest number of new tokens.

    Returns:
        Answers of each client, and figures. A request that fails ends the function.
    """
    import openai  # noqa: PLC0415 - needed only here, and the page is written without it

    async def client(mine: list[str]) -> list[tuple[str, int, float]]:
        async with openai.AsyncOpenAI(
            base_url=url, api_key="none", max_retries=0, timeout=TIMEOUT_S
        ) as connection:
            return [await ask(connection, prompt, new_tokens) for prompt in mine]

    started = time.perf_counter()
    results = await asyncio.gather(*map(client, clients))
    seconds = time.perf_counter() - started
    answers = [answer for result in results for answer in result]
    tokens = sum(count for _, count, _ in answers)
    times = sorted(took for *_, took in answers)
    figures = {
        "clients": len(clients),
        "answered": len(answers),
        "new_tokens": tokens,
        "seconds": seconds,
        "requests_per_s": len(answers) / seconds,
        "new_tokens_per_s": tokens / seconds,
        "median_s": statistics.median(times),
        "p95_s": times[int(0.95 * (len(times) - 1))],
    }
    return [[text for text, _, _ in result] for result in results], figures


def measure(run: Path, clients: int, requests: int, options: list[str]) -> dict[str, Any]:
    """Figures of one client and of many, and the number of answers that are equal."""
    known = prompts(20)
    shares = [
        [known[(client * requests + number) % len(known)] for number in range(requests)]
        for client in range(clients)
    ]
    with serving(run, options) as url:
        asyncio.run(load(url, [known[:8]]))  # warm-up
        (alone,), one = asyncio.run(load(url, [known]))
        expected = dict(zip(known, alone, strict=True))
        together, many = asyncio.run(load(url, shares))
    answered = [
        text == expected[prompt]
        for share, texts in zip(shares, together, strict=True)
        for prompt, text in zip(share, texts, strict=True)
    ]
    return {
        "sent": clients * requests,
        "equal": sum(answered),
        "options": options,
        "loads": [one, many],
        "ratio": many["new_tokens_per_s"] / one["new_tokens_per_s"],
        "machine": machine(),
        "versions": versions(),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a measurement."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of a demo recipe")
    parser.add_argument("--clients", type=int, default=64, help="clients at once (default: 64)")
    parser.add_argument("--requests", type=int, default=20, help="requests of each (default: 20)")
    parser.add_argument("--rows", default="16", help="--rows of the server (default: 16)")
    parser.add_argument("--threads", default="1", help="--threads of the server (default: 1)")


def main(words: list[str] | None = None) -> int:
    """Prints the figures as JSON; returns 1 if an answer differs."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    arguments = parser.parse_args(words)
    figures = measured(arguments)
    print(json.dumps(figures, indent=1))
    return int(figures["equal"] != figures["sent"])


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures for parsed options."""
    options = ["--rows", arguments.rows, "--threads", arguments.threads]
    return measure(arguments.run, arguments.clients, arguments.requests, options)


if __name__ == "__main__":
    sys.exit(main())
