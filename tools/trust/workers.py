"""Runs shared by four processes, of which one is killed and another is slow.

The others must end with a sentence and an exit code within seconds, the next start must go on, and
the files must be those of one process. In half of the cases the processes are on two machines in
small: two network namespaces that a virtual cable connects, each with a home of its own, over one
disk. Namespaces need root.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from moe_export.cli import main
from moe_export.system.workers import CONNECTING, JOINING
from moe_export.testing.tiny import tiny_checkpoint
from tools.trust.fuzz import load_everything, quick_folder
from tools.trust.kinds.base import run_words, write_recipe
from tools.trust.run_files import unequal
from tools.trust.sandbox import Outcome, Started
from tools.trust.verdict import DONE, REFUSED, verdict

PROCESSES = 4
LONGEST_S = 2.0
"""Longest time from start to kill; an undisturbed run takes about a second."""

PATIENCE_S = (JOINING + PROCESSES * CONNECTING).total_seconds() + 60
CLONE_NEWNET = 0x40000000
MACHINES = (f"mex{os.getpid()}a", f"mex{os.getpid()}b")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
ONE, TWO = "one machine", "two machines"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the campaign."""
    parser.add_argument("--cases", type=int, default=40, help="runs to disturb (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")


def campaign(arguments: argparse.Namespace) -> dict[str, Any]:
    """Disturbs runs and resumes them; returns what came of it."""
    os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # as the runner does before torch is loaded
    load_everything()
    random = Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="workers-", dir=quick_folder()) as folder:
        home = Path(folder)
        _prepare(home)
        alone = Started(lambda: _run(home, "alone", {})).wait(PATIENCE_S)
        if alone.code != 0:
            raise RuntimeError(alone.err)
        with _two_machines():
            tried = [
                _tried(home, random, (ONE, TWO)[number % 2]) for number in range(arguments.cases)
            ]
    return {
        "kinds": {name: _figures(tried, name) for name in (ONE, TWO)},
        "processes": PROCESSES,
        "bad": sum(each["bad"] for each in tried),
    }


def _prepare(home: Path) -> None:
    tiny_checkpoint(home / "model")
    write_recipe(
        home,
        calibrate={"sources": [{"demo": "sums"}], "sequences": 32, "sequence_length": 64},
        importance={"scores": ["fisher_margin"]},
        plan={"keep": 0.5},
    )


def _figures(tried: list[dict[str, Any]], name: str) -> dict[str, Any]:
    own = [each for each in tried if each["where"] == name]
    return {
        "tried": len(own),
        "stopped": sum(each["stopped"] for each in own),
        "longest_s": max((each["longest_s"] for each in own), default=0.0),
        "bad": sum(each["bad"] for each in own),
    }


def _tried(home: Path, random: Random, where: str) -> dict[str, Any]:
    """Disturbs one run, starts it again, and compares it."""
    shutil.rmtree(home / "run", ignore_errors=True)
    victim, slow = random.sample(range(PROCESSES), 2)
    first, longest_s = _disturbed(_start(home, where), random, victim, slow)
    others = [outcome for rank, outcome in enumerate(first) if rank != victim]
    second = [each.wait(PATIENCE_S) for each in _start(home, where)]
    is_bad = any(verdict(outcome) not in (DONE, REFUSED) for outcome in others)
    is_bad |= any(verdict(outcome) != DONE for outcome in second)
    is_bad |= bool(unequal(home / "alone", home / "run"))
    if is_bad:
        print(where, victim, first, second, flush=True)
    stopped = any(verdict(outcome) == REFUSED for outcome in others)
    return {"where": where, "stopped": stopped, "longest_s": longest_s, "bad": is_bad}


def _disturbed(
    started: list[Started], random: Random, victim: int, slow: int
) -> tuple[list[Outcome], float]:
    """Kills one process and stops another for a while.

    Returns:
        Outcomes of all, and the longest time from the kill to the end of a process that was not
        stopped by us, in seconds.
    """
    moments_s = sorted(random.uniform(0, LONGEST_S) for _ in range(2))
    events = random.sample([(victim, signal.SIGKILL), (slow, signal.SIGSTOP)], 2)
    killed = before_s = time.monotonic()
    for (rank, number), moment_s in zip(events, moments_s, strict=True):
        time.sleep(max(0.0, before_s + moment_s - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.kill(started[rank].process, number)
        if number == signal.SIGKILL:
            killed = time.monotonic()
    time.sleep(random.uniform(0, 1))
    with contextlib.suppress(ProcessLookupError):
        os.kill(started[slow].process, signal.SIGCONT)
    continued_s = time.monotonic() - killed
    outcomes = [each.wait(PATIENCE_S) for each in started]
    return outcomes, max(0.0, time.monotonic() - killed - continued_s)


def _start(home: Path, where: str) -> list[Started]:
    """Starts all processes in the way of `torchrun`."""
    address = ADDRESSES[0] if where == TWO else "127.0.0.1"
    shared = {
        "WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(free_port()),
    }
    return [
        Started(lambda rank=rank: _work(home, where, rank, shared))  # type: ignore[misc]
        for rank in range(PROCESSES)
    ]


def _work(home: Path, where: str, rank: int, shared: dict[str, str]) -> int:
    machine = rank * len(MACHINES) // PROCESSES
    settings = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    if where == TWO:
        _enter(MACHINES[machine])
        own = home / MACHINES[machine]
        own.mkdir(exist_ok=True)
        settings |= {
            "HOME": str(own),
            "TMPDIR": str(own),
            "XDG_CACHE_HOME": str(own),
            "GLOO_SOCKET_IFNAME": f"{MACHINES[machine]}0",
        }
    return _run(home, "run", settings)


def _run(home: Path, run: str, settings: dict[str, str]) -> int:
    os.chdir(home)
    os.environ.update(settings)
    words = run_words("--until", "plan")
    words[words.index("--run") + 1] = run
    return main(words)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


@contextmanager
def _two_machines() -> Iterator[None]:
    """Makes two network namespaces with a virtual cable between them."""
    names = [f"{machine}0" for machine in MACHINES]
    try:
        for machine in MACHINES:
            _ip("netns", "add", machine)
        _ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for machine, name, address in zip(MACHINES, names, ADDRESSES, strict=True):
            _ip("link", "set", name, "netns", machine)
            _ip("-n", machine, "addr", "add", f"{address}/24", "dev", name)
            _ip("-n", machine, "link", "set", name, "up")
            _ip("-n", machine, "link", "set", "lo", "up")
        yield
    finally:
        for machine in MACHINES:
            subprocess.run(["ip", "netns", "del", machine], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _enter(machine: str) -> None:
    """Moves this process into a network namespace."""
    number = os.open(f"/run/netns/{machine}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(number, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns", machine)
    os.close(number)
