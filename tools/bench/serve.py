"""Loads a server with many clients and compares every answer with that of a single client.

    python -m tools.bench.serve runs/demo --clients 64 --requests 20

It starts `moe-export serve RUN` on a free port of 127.0.0.1. One client and all clients take turns,
so that the ratio of their throughputs holds on a machine with other work. A client keeps one
connection and sends a request when the answer to the one before has come. Clients are plain sockets
in one process, because they take time of the same cores as the server.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_export.demo.tasks import KINDS, test_items
from moe_export.system.machine import machine, versions

NEW_TOKENS = 32
ROUNDS = 4

HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n"
)


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


@dataclass(frozen=True)
class Answer:
    """Answer to a prompt, its number of tokens, and the time it took in seconds."""

    text: str
    tokens: int
    seconds: float


class Client:
    """Connection of one client."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, prompt: str) -> Answer:
        """Sends a prompt; an answer that is no success ends the program."""
        started = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        body = {"model": "demo", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0}
        content = json.dumps(body).encode()
        writer.write(HEAD % len(content) + content)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().splitlines()
            if line.startswith(b"content-length:")
        )
        text = await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            sys.exit(f"a request failed: {text.decode()}")
        made = json.loads(text)
        tokens = made["usage"]["completion_tokens"]
        return Answer(made["choices"][0]["text"], tokens, time.perf_counter() - started)

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            await self._streams[1].wait_closed()


@dataclass
class Load:
    """Clients that send their prompts at once, in several rounds."""

    clients: list[Client]
    seconds: float = 0.0
    answers: list[tuple[str, Answer]] = field(default_factory=list)

    async def round(self, shares: list[list[str]]) -> None:
        """Sends the prompts of every client, one after the other, all clients at once."""

        async def send(client: Client, prompts: list[str]) -> list[tuple[str, Answer]]:
            return [(prompt, await client.ask(prompt)) for prompt in prompts]

        started = time.perf_counter()
        results = await asyncio.gather(*map(send, self.clients, shares))
        self.seconds += time.perf_counter() - started
        self.answers += [answer for result in results for answer in result]

    def figures(self) -> dict[str, Any]:
        """Throughput and times."""
        tokens = sum(answer.tokens for _, answer in self.answers)
        times = sorted(answer.seconds for _, answer in self.answers)
        return {
            "clients": len(self.clients),
            "answered": len(self.answers),
            "new_tokens": tokens,
            "seconds": self.seconds,
            "requests_per_s": len(self.answers) / self.seconds,
            "new_tokens_per_s": tokens / self.seconds,
            "median_s": statistics.median(times),
            "p95_s": times[int(0.95 * (len(times) - 1))],
        }


async def in_turns(url: str, known: list[str], clients: int, requests: int) -> tuple[Load, Load]:
    """One client and many take turns; the single one sends every known prompt once."""
    port = int(url.split(":")[2].split("/", maxsplit=1)[0])
    one, *many = (Client("127.0.0.1", port) for _ in range(clients + 1))
    await Load([one]).round([known[:8]])  # warm-up
    alone, together = Load([one]), Load(many)
    for number in range(ROUNDS):
        await alone.round([known[number::ROUNDS]])
        await together.round(
            [
                [known[(client * requests + index) % len(known)] for index in indices]
                for client in range(clients)
                for indices in [range(requests)[number::ROUNDS]]
            ]
        )
    for client in (one, *many):
        await client.close()
    return alone, together


def measure(run: Path, clients: int, requests: int, options: list[str]) -> dict[str, Any]:
    """Figures of one client and of many, and the number of answers that are equal."""
    with serving(run, options) as url:
        alone, together = asyncio.run(in_turns(url, prompts(20), clients, requests))
    expected = {prompt: answer.text for prompt, answer in alone.answers}
    one, many = alone.figures(), together.figures()
    return {
        "sent": clients * requests,
        "equal": sum(answer.text == expected[prompt] for prompt, answer in together.answers),
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
