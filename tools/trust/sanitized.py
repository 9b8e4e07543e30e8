"""Part of `sanitizers`: runs nodes in ONNX Runtime, in a process that has the sanitizers loaded.

    python -m tools.trust.sanitized LIBRARY table FIRST STEP
    python -m tools.trust.sanitized LIBRARY hostile FIRST NUMBER
    python -m tools.trust.sanitized LIBRARY fault

The last line of the output counts what was done. `fault` makes the library read beyond an array.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np

from moe_export.op import c_interface
from moe_export.testing.cases import CASES, FACTOR_CASES, inputs_of
from moe_export.testing.executors import run_reference
from moe_export.testing.native_executors import NATIVE_KINDS, run_in_onnx_runtime
from tools.trust.kinds.nodes import RAN, hostile_node, outcome

THREADS = (1, 2, 3)
MOST_RELATIVE = 0.05
"""Largest difference to the reference, relative to its largest value; tests measure it tightly."""


def table(library: Path, first: int, step: int) -> Counter[str]:
    """Runs every `step`-th pair of a case and a kind of the table of the operator."""
    cases = (*CASES, *FACTOR_CASES)
    pairs = [(case, kind) for case in cases for kind in NATIVE_KINDS][first::step]
    for case, kind in pairs:
        inputs = inputs_of(case, *kind)
        y = run_in_onnx_runtime(library, inputs).astype(np.float64)
        expected = run_reference(inputs).astype(np.float64)
        most = np.abs(expected).max(initial=0)
        assert np.abs(y - expected).max(initial=0) <= MOST_RELATIVE * most, (case, kind)
    return Counter({RAN: len(pairs)})


def hostile(library: Path, first: int, number: int) -> Counter[str]:
    """Runs hostile nodes; the number of a node is the seed of everything in it."""
    counts: Counter[str] = Counter()
    for seed in range(first, first + number):
        random = Random(f"node {seed}")
        model, fed, what = hostile_node(random, library)
        print(seed, what, flush=True)  # the last one is that of a crash
        counts[outcome(library, model, fed, random.choice(THREADS))] += 1
    return counts


def fault(library: Path) -> Counter[str]:
    """Gives the library an array that is shorter than its shape says."""
    keep: list[object] = []
    shape = (64, 64)
    full, short = np.ones(shape, np.float32), np.ones(64, np.float32)
    weights = c_interface.linear_weights([full], "float32", 0, "float32", keep)
    weights.tensors[0] = c_interface.tensor_of_bytes(short, "float32", shape, keep)
    made = ctypes.c_void_p()
    create = c_interface.load(library).moe_export_linear_create
    c_interface.call(create, ctypes.byref(weights), None, ctypes.byref(made))
    return Counter({RAN: 1})


WORK = {"table": table, "hostile": hostile, "fault": fault}

if __name__ == "__main__":
    found = WORK[sys.argv[2]](Path(sys.argv[1]), *map(int, sys.argv[3:]))
    print(json.dumps(found))
