"""Times of the nodes of an exported model, against a plain read of their weights.

`python -m moe_export.bench.nodes DIRECTORY THREADS CONTEXT STEPS` prints the fields of `Nodes`.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from moe_export import errors
from moe_export.bench.models import PORTABLE, Model
from moe_export.bench.process import REST_S
from moe_export.checkpoint import read_config
from moe_export.errors import MoeExportError, RecipeError
from moe_export.families import spec_of
from moe_export.families.base import ModelSpec
from moe_export.op.spec import NAME, PACKED_NAME
from moe_export.ort.decoding import open_cache
from moe_export.ort.session import OrtModel
from moe_export.reporting.tables import Table
from moe_export.reporting.units import percent
from moe_export.system.processes import end_with_parent
from moe_export.variants import MODEL_FILE

READ_BYTES = 256 << 20
"""Bytes of a plain read, more than processors have caches."""

LOOKUPS = ("Gather", "GatherBlockQuantized", "GroupQueryAttention", "RotaryEmbedding")
"""Operators that read a few rows of their weights."""

PADDING = re.compile(r"padding\..*|(?!router|condensers).*\.chosen")
"""Names of the nodes that move padding behind the tokens of a row and back."""


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one name in all layers.

    Attributes:
        name: Name without the number of the layer.
        nodes: Number of nodes.
        seconds: Time of all of them in one step, median over steps.
        read_bytes: Bytes of weights that they read for one token, if experts are chosen alike.
    """

    name: str
    nodes: int
    seconds: float
    read_bytes: float


@dataclass(frozen=True)
class Nodes:
    """Result of one model.

    Attributes:
        read_bytes_per_s: Rate of a plain read with as many threads, median.
        groups: Groups of nodes, the slowest first.
    """

    read_bytes_per_s: float
    groups: tuple[NodeGroup, ...]


def nodes_of(model: Model, threads: int, context: int, steps: int) -> Nodes:
    """Times the nodes of a model in a process of its own.

    Args:
        model: Model that runs with the native library.
        threads: Threads within an operator.
        context: Tokens before the first step.
        steps: Number of decoding steps.

    Raises:
        RecipeError: The model runs without the library.
        MoeExportError: The model does not load or run.
    """
    if model.operator != "native":
        raise RecipeError(
            f"{model.name}: --nodes needs nodes that ONNX Runtime leaves whole, with the native "
            f"library; leave {PORTABLE} out"
        )
    command = [sys.executable, "-m", "moe_export.bench.nodes", str(model.directory)]
    command += [str(number) for number in (threads, context, steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise MoeExportError(
            f"{model.name}: the process that times nodes ended with code {done.returncode}, "
            "expected a table from it; see its message above, or leave --nodes out"
        )
    found = json.loads(done.stdout)
    if "error" in found:
        kind: type[MoeExportError] = getattr(errors, found["kind"])
        raise kind(f"{model.name}: {found['error']}")
    groups = tuple(NodeGroup(**group) for group in found["groups"])
    return Nodes(found["read_bytes_per_s"], groups)


def node_table(name: str, found: Nodes) -> Table:
    """Times of the nodes that read weights, of those for padding, and of all others together.

    Args:
        name: Name of the model.
        found: Times of its nodes.
    """
    total_s = sum(group.seconds for group in found.groups)
    rows: list[list[str]] = []
    padding: list[NodeGroup] = []
    others: list[NodeGroup] = []
    for group in found.groups:
        if not group.read_bytes:
            (padding if PADDING.fullmatch(group.name) else others).append(group)
            continue
        rate = group.read_bytes / group.seconds
        rows.append(
            [
                *_cells(group.name, [group], total_s),
                f"{group.read_bytes / 1e6:.1f}",
                f"{rate / 1e9:.1f}",
                f"{rate / found.read_bytes_per_s:.2f}",
            ]
        )
    head = [name, "nodes", "ms", "of all", "MB", "GB/s", "of a plain read"]
    rest = {"padding": padding, "others": others}
    return Table(head, [*rows, *([*_cells(n, rest[n], total_s), "", "", ""] for n in rest)])


def _cells(name: str, groups: Sequence[NodeGroup], total_s: float) -> list[str]:
    seconds = sum(group.seconds for group in groups)
    nodes = sum(group.nodes for group in groups)
    return [name, str(nodes), f"{seconds * 1e3:.2f}", percent(seconds / total_s)]


def weight_bytes(directory: Path) -> dict[str, float]:
    """Bytes of weights that each node of a model reads for one token, by the node's name."""
    graph = onnx.load(directory / MODEL_FILE, load_external_data=False).graph
    sizes = {tensor.name: _bytes(tensor) for tensor in graph.initializer}
    spec = _spec(directory)
    found = {}
    for node in _nodes_in(graph):
        size = sum(sizes.get(name, 0) for name in node.input)
        if node.op_type in (NAME, PACKED_NAME):
            found[node.name] = size * _share_read(spec, int(node.name.split(".")[1]))
        elif node.op_type not in LOOKUPS:
            found[node.name] = size
    return found


def _nodes_in(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yields the nodes of a graph and of the branches in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes_in(attribute.g)


def _bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a weight in the data file; 0 for constants in the graph."""
    length = [entry.value for entry in tensor.external_data if entry.key == "length"]
    return int(length[0]) if length else 0


def _spec(directory: Path) -> ModelSpec:
    return spec_of(read_config(directory))


def _share_read(spec: ModelSpec, layer: int) -> float:
    """Share of a layer's expert weights that one token reads, if experts are chosen alike."""
    routed, shared = sum(spec.widths[layer]), spec.shared_widths[layer] or 0
    read = routed * spec.active_experts / spec.num_experts + shared
    return read / (routed + shared) if routed + shared else 0.0


def timed(directory: Path, threads: int, context: int, steps: int) -> Nodes:
    """Times nodes and plain reads in this process."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        model = OrtModel(directory, threads=threads, profile=profile)
        vocabulary = model.session.get_outputs()[0].shape[-1]
        random = np.random.default_rng(0)
        cache = open_cache(model, 1, context + steps)
        cache.prompt(random.integers(0, vocabulary, (1, context)))
        rates = []
        for _ in range(steps):
            # ONNX Runtime's threads look for work for a while, on the cores that the read needs.
            time.sleep(REST_S)
            rates.append(_read_rate(threads))
            cache.token(random.integers(0, vocabulary, 1))
        events = json.loads(Path(model.session.end_profiling()).read_bytes())
    groups = _groups(_step_seconds(events, steps), weight_bytes(directory))
    return Nodes(statistics.median(rates), tuple(groups))


def _read_rate(threads: int) -> float:
    """Bytes per second of a plain read."""
    parts = np.array_split(_area(), threads)
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(np.bitwise_or.reduce, parts))
        return READ_BYTES / (time.perf_counter() - started)


def _area() -> Any:
    if not _AREA:
        _AREA.append(np.ones(READ_BYTES // 8, np.uint64))
    return _AREA[0]


_AREA: list[Any] = []


def _step_seconds(events: Iterable[dict[str, Any]], steps: int) -> dict[str, list[float]]:
    """Seconds of each node in the last runs, by its name.

    A node with branches is left out, since the nodes of the branch that ran are events too.
    """
    suffix = "_kernel_time"
    events = list(events)
    first = sorted(event["ts"] for event in events if event.get("name") == "model_run")[-steps]
    found: dict[str, list[float]] = {}
    for event in events:
        name = event.get("name", "")
        is_node = event.get("cat") == "Node" and name.endswith(suffix)
        if is_node and event["ts"] >= first and event["args"]["op_name"] != "If":
            found.setdefault(name.removesuffix(suffix), []).append(event["dur"] / 1e6)
    return found


def _groups(seconds: dict[str, list[float]], read_bytes: dict[str, float]) -> list[NodeGroup]:
    names: dict[str, list[str]] = {}
    for name in seconds:
        names.setdefault(re.sub(r"^layers\.\d+\.", "", name), []).append(name)
    groups = [
        NodeGroup(
            group,
            len(members),
            sum(statistics.median(seconds[name]) for name in members),
            sum(read_bytes.get(name, 0) for name in members),
        )
        for group, members in names.items()
    ]
    return sorted(groups, key=lambda group: -group.seconds)


def main(arguments: Sequence[str]) -> None:
    """Prints the times of one model as JSON."""
    directory, *numbers = arguments
    threads, context, steps = map(int, numbers)
    try:
        found: dict[str, Any] = asdict(timed(Path(directory), threads, context, steps))
    except MoeExportError as error:
        found = {"error": str(error), "kind": type(error).__name__}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    end_with_parent()
    main(sys.argv[1:])
