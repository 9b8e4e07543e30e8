"""Tests of several processes, started in the way of `torchrun`."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from moe_export.cli import main
from moe_export.cli.interrupts import SENTENCE as INTERRUPTED
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.small_runs import artifacts, write_recipe

OTHER_ENDED = "another process of this run has ended or cannot be reached"

LAST_IS_LATE = """
import os, sys, time
from moe_export.cli import main
from moe_export.scoring.collector import SCORED
from moe_export.passes.states import States

finish = States.finish

def late(self, kind, layer):
    if (kind, layer, os.environ["RANK"]) == (SCORED, 0, "1"):
        time.sleep(2)
    finish(self, kind, layer)

States.finish = late
sys.exit(main(sys.argv[1:]))
"""
"""The command line, with a second worker that is slow to mark the end of its work."""


IMPORTS_BETWEEN = """
import sys
from pathlib import Path
from moe_export.system.workers import joined

with joined() as workers:
    import torch.distributed.fsdp
    assert workers.tell({"from": workers.rank}) == {"from": 0}
threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
sys.exit(str(threads) if any("gloo" in name for name in threads) else 0)
"""
"""Two workers that import, while they are joined, modules that keep torch's default group."""


def torchrun(
    processes: int, *words: str, program: Sequence[str] = ("-m", "moe_export")
) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={processes}", *program, *words]
    settings = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",  # a process that aborts says where
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.run(command, capture_output=True, text=True, check=False, env=settings)


def test_two_workers_write_the_bytes_of_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # as in the workers: several threads may round a sum differently
    recipe = write_recipe(
        tmp_path,
        tiny_checkpoint(tmp_path / "model"),
        calibrate={
            "sources": [{"demo": "sums", "weight": 3}, {"demo": "strings"}],
            "sequences": 8,
            "sequence_length": 64,
        },
        importance={
            "scores": ["fisher_margin", "fisher_margin_weighted", "reap"],
            "batch_tokens": 128,
        },
    )
    alone = main(["run", str(recipe), "--run", str(tmp_path / "one"), "--until", "plan"])
    assert alone == 0
    arguments = ["run", str(recipe), "--directory", str(tmp_path / "two"), "--until", "plan"]
    done = torchrun(2, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("importance           done") == 1
    assert artifacts(tmp_path / "two") == artifacts(tmp_path / "one")
    assert not (tmp_path / "two" / "importance.partial").exists()


def test_the_files_of_a_slow_worker_stay_until_it_is_done_with_them(tmp_path: Path) -> None:
    program = tmp_path / "late.py"
    program.write_text(LAST_IS_LATE)
    recipe = write_recipe(tmp_path, tiny_checkpoint(tmp_path / "model"))
    arguments = ["run", str(recipe), "--directory", str(tmp_path / "run"), "--until", "importance"]
    done = torchrun(2, *arguments, program=[str(program)])
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run" / "importance.partial").exists()


def test_an_error_of_the_first_worker_ends_the_others(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tmp_path / "nothing")
    done = torchrun(2, "run", str(recipe), "--directory", str(tmp_path / "run"))
    assert done.returncode != 0
    said = re.findall("^moe-export: .*", done.stderr, re.MULTILINE)
    assert sum("is no directory here" in line for line in said) == 1
    # torchrun ends the others by SIGTERM, which may come before they miss the first.
    known = ("is no directory here", OTHER_ENDED, INTERRUPTED)
    assert all(any(words in line for words in known) for line in said), said


def test_no_thread_of_the_group_is_left_to_abort_the_end_of_a_worker(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(IMPORTS_BETWEEN, encoding="utf-8")
    done = torchrun(2, program=[str(tmp_path / "program.py")])
    assert done.returncode == 0, done.stderr


ONE_DIES = """
import os, sys
from moe_export.errors import MoeExportError
from moe_export.system.workers import joined

try:
    with joined() as workers:
        workers.meet()
        if workers.rank == 1:
            os._exit(9)
        workers.tell({})
except MoeExportError as error:
    sys.stderr.write(f"moe-export: {error}")
    sys.exit(error.exit_code)
"""
"""Two workers, of which the second dies after they have met."""

ONE_DIES_WHILE_JOINING = """
import os, sys
from datetime import timedelta
from torch import distributed
from moe_export.errors import MoeExportError
from moe_export.system import workers

workers.CONNECTING = timedelta(seconds=1)
if os.environ["RANK"] == "1":
    distributed.ProcessGroupGloo = lambda *_, **__: os._exit(9)
try:
    with workers.joined():
        pass
except MoeExportError as error:
    sys.stderr.write(f"moe-export: {error}")
    sys.exit(error.exit_code)
"""
"""Two workers, of which the second dies after it has said that it is there."""


@pytest.mark.parametrize("program", [ONE_DIES, ONE_DIES_WHILE_JOINING])
def test_the_death_of_a_worker_is_one_sentence_of_the_others(program: str) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=shared | {"RANK": str(rank), "TORCH_CPP_LOG_LEVEL": "FATAL"},
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    )
    _, said = first.communicate(timeout=120)
    second.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (4, 9), said
    assert OTHER_ENDED in said
    assert "Traceback" not in said
    assert said.count("\n") == 0
