"""Speed of whole models on the CPU, pruned and not, against llama.cpp in the same run.

    python -m tools.pages speed HOME --llama-cpp DIR [--only NAME] [--known]

DIR is node_modules/@node-llama-cpp/linux-x64/bins/linux-x64 after
`npm install @node-llama-cpp/linux-x64@3.22.1`. HOME keeps models (30 GB) and results; a measurement
that is known is not made again unless `--only` names it. Give the command real-time priority
(`chrt --fifo 1`) on a machine with other work.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from tools.pages.page import rounded, write_page
from tools.speed.pieces import DEEP, FLAT, FLAT_CASE, PREFILLS, measured, pieces
from tools.speed.targets import WHOLE, target_rows
from tools.speed.variants import SPEEDUP, planned_shape

NAME = "speed"

INTRODUCTION = (
    "`python -m tools.pages speed HOME --llama-cpp DIR` made this page and "
    "[speed.json](data/speed.json). Models have the shapes of Qwen1.5-MoE-A2.7B with {deep} layers "
    "and random weights, and the real vocabulary. So this page is about speed alone: "
    "[quantization.md](quantization.md) has what formats cost on the demo model, and "
    "[real_model.md](real_model.md) what pruning costs on a language model."
)
MODELS = (
    "`unpruned` has experts of width 1408 and a shared expert of 5632; `half` has 704 and 5632; "
    "`both half` 704 and 2816; `planned` 704 and {shared}, the bytes of a plan with `speedup: "
    "{speedup}` in the formats of `recipes/qwen15_50pct_int4.yaml`. `int4+int8` has experts in "
    "int4, attention and lm_head in int8. All are packed float16 exports with [`LinearPacked`]"
    "(../reference/operator.md#linear); `MatMulNBits` has ONNX Runtime's nodes instead. `Q4_0` and "
    "`Q8_0` are the unpruned checkpoint, quantized and run by llama.cpp 0.5.0 (its prebuilt "
    "library for this processor, its defaults; the lm_head of Q4_0 is in Q6_K)."
)
AGREEMENT = (
    "Both run the same model: after 32 tokens, logits of `unpruned int8` and of `Q8_0` with {flat} "
    "layers differ by {rms:.1%} (relative rms), and their greatest is {same} token."
)
METHOD = (
    "Models of a group are loaded together and take turns, each in a process of its own. Ratios "
    "are medians over turns of the peer's time and ours in the same turn, with the least and the "
    "greatest. Tokens are random, so that experts are chosen about equally often. A figure for 24 "
    "layers is the line through {flat} and {deep} layers of the same turn. By bytes a model would "
    "be so much faster if both read memory at the same rate and did nothing else."
)
NODES = (
    "Medians of ONNX Runtime's profiler over the steps, at one thread or two and after 64 or 1,024 "
    "tokens. The plain read has as many threads."
)


MEMORY = (
    "Resident memory of loading and of a short decoding, over the size of the file. llama.cpp "
    "keeps a second copy of weights that it lays out anew."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the folders and the choice of measurements."""
    names = [piece.name for piece in pieces()]
    parser.add_argument("home", type=Path, metavar="HOME", help="folder of models and results")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder of its libraries")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=[*names, "nodes", "agreement"],
        help="make this measurement again, and no other",
    )
    parser.add_argument("--known", action="store_true", help="make no measurement")


def make(arguments: argparse.Namespace) -> None:
    """Measures what is unknown and writes the page."""
    names = None if arguments.known else arguments.only
    data = rounded(measured(arguments.home, arguments.llama_cpp, names))
    write_page(NAME, data, markdown(data))


def markdown(data: Mapping[str, Any]) -> str:
    """The page from its figures."""
    shown = {piece.name: data[piece.name] for piece in pieces() if piece.name in data}
    parts = [
        "# Speed of whole models on the CPU",
        INTRODUCTION.format(deep=DEEP),
        MODELS.format(shared=planned_shape().shared, speedup=SPEEDUP),
        METHOD.format(deep=DEEP, flat=FLAT),
        *_agreement(data),
        conditions(shown),
        "## Targets",
        table(Table(TARGET_HEAD, target_rows(data))),
        BOUNDS.format(whole=WHOLE),
        "## All measurements",
        table(speed_table(shown)),
        *_nodes(data),
        "## Memory",
        MEMORY,
        table(memory_table(shown)),
    ]
    return "\n\n".join(parts) + "\n"


TARGET_HEAD = ["measurement", "target", "1 thread", "2 threads", "by bytes"]

BOUNDS = (
    "What bounds the misses, by the nodes below. A step of decoding reads its weights from "
    "memory. On two threads its nodes do so at 0.85 of a plain read or more, so that a step can "
    "hardly be shorter, and where llama.cpp reads as fast, what is left is the ratio of bytes. A "
    "plain read by two threads is 1.05 to 1.12 times as fast as by one here, so that decoding "
    "cannot become 1.8 times as fast; prompts, which compute, do. One thread reads at 0.6 to 0.8 "
    "of a plain read; why not faster was not found. Pages of 2 MB (`@copied`, "
    "`MOE_EXPORT_WEIGHTS=copy`) made a step 1.12 and 1.07 times as fast in the same turns below; "
    "in a run two hours before they made it slower. After 1,024 tokens a quarter of a step is "
    "ONNX Runtime's GroupQueryAttention, whose float16 cache it reads at 7 GB/s. The router is a "
    "small float16 MatMul of ONNX Runtime, 1 % of a step. Beside the median stand the quartiles "
    "of the turns; the line to {whole} layers spreads what turns differ by about five times. Not "
    "measured, and so without a ratio: 3-bit experts, which no kernel has ([log](../log.md)), "
    "speculation on top, and {whole} layers themselves."
)
"""Reasons of the targets that are missed, from the tables."""


def _agreement(data: Mapping[str, Any]) -> Iterator[str]:
    found = data.get("agreement")
    if found is not None:
        same = "the same" if found["same_token"] else "another"
        yield AGREEMENT.format(flat=FLAT, rms=found["relative_rms"], same=same)


def conditions(shown: Mapping[str, Any]) -> str:
    """Machine, versions, and load of other work."""
    first = next(iter(shown.values()))
    loads = sorted(result["load"] for result in shown.values())
    priority = "real-time priority" if all(r["priority"] for r in shown.values()) else "no priority"
    return (
        f"{first['machine']['cpu']}, {first['machine']['cores']} cores, {priority}, load of other "
        f"work {loads[0]:.0f} to {loads[-1]:.0f}: compare ratios, not times. ONNX Runtime "
        f"{first['versions']['onnxruntime']}, kernel {first['kernel']}."
    )


def speed_table(shown: Mapping[str, Any]) -> Table:
    """Times of every measurement, and ratios to llama.cpp in the same turn."""
    rows = []
    for result in shown.values():
        for case, seconds in result["seconds"].items():
            peer_s = np.array(next(iter(seconds.values())))
            for name, own in seconds.items():
                ratio = peer_s / np.array(own)
                sizes = result["sizes"][case]
                tokens = sizes["batch"] * (sizes["prompt_tokens"] if case in PREFILLS else 1)
                rows.append(
                    [
                        f"{FLAT if case == FLAT_CASE else result['layers']}",
                        f"{result['threads']}",
                        case,
                        name,
                        f"{np.median(own) * 1e3:.1f}",
                        f"{tokens / np.median(own):.0f}",
                        f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})",
                    ]
                )
    head = ["layers", "threads", "case", "model", "ms", "tokens/s", "times as fast as llama.cpp"]
    return Table(head, rows)


def _nodes(data: Mapping[str, Any]) -> Iterator[str]:
    if "nodes" in data:
        yield from ("## Nodes of a decoding step", NODES, table(node_table(data["nodes"]["nodes"])))


def node_table(found: Mapping[str, Any]) -> Table:
    """Times and rates of the nodes of each profile; nodes below 1 % are added up."""
    rows = []
    for name, profile in found.items():
        groups = profile["groups"]
        total_s = sum(group["seconds"] for group in groups)
        small = [group for group in groups if group["seconds"] < 0.01 * total_s]
        rows += [_node_row(name, group, profile, total_s) for group in groups if group not in small]
        rest_s = sum(group["seconds"] for group in small)
        rows.append([name, "others", f"{rest_s * 1e3:.2f}", f"{rest_s / total_s:.0%}", "", "", ""])
    head = ["model, threads, context", "nodes", "ms", "of all", "MB", "GB/s", "of a plain read"]
    return Table(head, rows)


def _node_row(
    name: str, group: Mapping[str, Any], profile: Mapping[str, Any], total_s: float
) -> list[str]:
    seconds, size = group["seconds"], group["read_bytes"]
    cells = [name, group["name"], f"{seconds * 1e3:.2f}", f"{seconds / total_s:.0%}"]
    if not size:
        return [*cells, "", "", ""]
    rate = size / seconds
    share = rate / profile["read_bytes_per_s"]
    return [*cells, f"{size / 1e6:.0f}", f"{rate / 1e9:.1f}", f"{share:.2f}"]


def memory_table(shown: Mapping[str, Any]) -> Table:
    """Resident memory of each model on one thread."""
    found: dict[str, float] = {}
    for result in shown.values():
        if result["threads"] == 1 and result["layers"] == DEEP:
            found = result["resident_over_file"] | found
    return Table(["model", "resident / file"], [[n, f"{v:.2f}"] for n, v in found.items()])
