"""Divergence of an exported model from torch, with its own choice of experts and with torch's.

    python -m tools.routing HOME [--expert-width 128]

Makes a checkpoint of four random layers with the shapes of Qwen3.5-35B-A3B, narrower experts and
8,000 tokens, prunes, quantizes and exports it, and compares 128 positions with torch in float32.
Where routers have nearly equal scores, rounding changes which experts are chosen. With torch's
choice as an input of the graph, what is left is the rounding itself. Files that are there already
are not made again; they take 4.5 GB of disk.

Legend: T tokens, V vocabulary, K top-k, E experts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moe_export.evaluation.tally import divergence_nats, log_softmax
from moe_export.graph.changed import first_inputs, open_changed
from moe_export.op.spec import Dtype
from moe_export.stages.export import export_model
from moe_export.testing.synthetic_checkpoint import config_of
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.torch_model.layered import StreamedModel
from moe_export.variants import MODEL_FILE
from tools.pages.stage_runs import carry_out, write_inputs

FAMILY, SIZE, LAYERS, VOCABULARY, TOKENS = "qwen3_5_moe_text", "qwen3.5-35b-a3b", 4, 8000, 64
EXPORTS: tuple[tuple[str, Dtype], ...] = (
    ("prune", "float16"),
    ("quantize", "float32"),
    ("quantize", "float16"),
)
"""Stage and dtype of the exports that are compared."""
CHANGES = {"importance.scores": "[magnitude]", "plan.score": "magnitude"}


class Routed(NamedTuple):
    """Logits of sequences, and the experts chosen for them.

    Attributes:
        logits_TV: Logits of all sequences, float32.
        chosen: Chosen experts by layer, sorted, int64 [T, K].
    """

    logits_TV: NDArray[np.float32]
    chosen: dict[int, NDArray[np.int64]]


def main() -> None:
    """Makes the files that are missing and prints the comparison for each export."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("home", type=Path, help="folder for all files; is created")
    parser.add_argument(
        "--expert-width", type=int, default=128, help="default: 128 (released: 512)"
    )
    given = parser.parse_args()
    home = given.home.absolute()
    widths = {"moe_intermediate_size": given.expert_width}
    write_inputs(home, config_of(FAMILY, SIZE, LAYERS, VOCABULARY) | widths, sequences=2)
    carry_out(home / "recipe.yaml", home / "run", "quantize", CHANGES)
    tokenizer = Tokenizer.from_file(str(home / "checkpoint" / "tokenizer.json"))
    ids = tokenizer.encode((home / "text.txt").read_text(encoding="utf-8")[:3000]).ids
    sequences = [ids[:TOKENS], ids[TOKENS : 2 * TOKENS]]
    for stage, dtype in EXPORTS:
        checkpoint = home / "run" / stage
        expected = run_torch(checkpoint, sequences)
        with tempfile.TemporaryDirectory(dir=home) as folder:
            exported = Path(folder) / "model"
            export_model(checkpoint, exported, dtype)
            own = run_exported(exported, sequences)
            given_choice = run_exported(exported, sequences, expected.chosen)
        print(f"{stage}, {dtype}, own choice: {compared(expected, own)}", flush=True)
        print(f"{stage}, {dtype}, torch's choice: {compared(expected, given_choice)}", flush=True)


def compared(expected: Routed, actual: Routed) -> str:
    """KL, agreement, and positions for which a router chose other experts, by layer."""
    same = (expected.logits_TV.argmax(-1) == actual.logits_TV.argmax(-1)).mean()
    log_q, log_p = log_softmax(expected.logits_TV), log_softmax(actual.logits_TV)
    kl_nats = divergence_nats(log_q, log_p) / len(log_q)
    others = [
        int((expected.chosen[layer] != chosen).any(-1).sum())
        for layer, chosen in actual.chosen.items()
    ]
    return f"KL {kl_nats:.2e} nats, same token {100 * same:.1f} %, other experts at {others}"


def run_torch(checkpoint: Path, sequences: Sequence[list[int]]) -> Routed:
    """Runs a checkpoint in float32, one layer in memory at a time."""
    model = StreamedModel(checkpoint, torch.float32)
    chosen: dict[int, list[NDArray[np.int64]]] = {}

    def note(block: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        x_TD = arguments[0].reshape(-1, arguments[0].shape[-1])
        best_TK = block.choice_scores(x_TD).topk(block.spec.chosen_experts).indices
        chosen.setdefault(block.layer, []).append(best_TK.sort(-1).values.numpy())

    for layer in range(len(model.layers)):
        block = model.block(layer)
        if isinstance(block, RaggedMoEBlock):
            block.register_forward_pre_hook(note)
    (states,) = deque(model.states([torch.tensor([ids]) for ids in sequences]), maxlen=1)
    with model.head() as (norm, head), torch.no_grad():
        logits = [head(norm(state[0])).numpy() for state in states]
    return Routed(
        np.concatenate(logits), {layer: np.concatenate(parts) for layer, parts in chosen.items()}
    )


def run_exported(
    directory: Path,
    sequences: Sequence[list[int]],
    choice: Mapping[int, NDArray[np.int64]] | None = None,
) -> Routed:
    """Runs an exported model on the CPU.

    Args:
        directory: Folder of the exported model; nothing is written there.
        sequences: Token ids of each sequence.
        choice: Experts that replace the routers' choice, by layer, [T, K]; None for their own.
    """
    model = ir.load(directory / MODEL_FILE)
    routers = _routers(model)
    for layer, node in routers.items():
        node.outputs[1].type = ir.TensorType(ir.DataType.INT64)
        model.graph.outputs.append(node.outputs[1])
        if choice is not None:
            _replace_choice(model.graph, node, layer)
    session = open_changed(model, directory, native=True)
    logits, chosen, start = [], [], 0
    for sequence in sequences:
        feeds = first_inputs(model, sequence)
        for layer in routers if choice is not None else ():
            assert choice is not None
            feeds[f"choice.{layer}"] = choice[layer][start : start + len(sequence)]
        start += len(sequence)
        names = ["logits", *(str(node.outputs[1].name) for node in routers.values())]
        first, *rest = session.run(names, feeds)
        logits.append(first[0].astype(np.float32))
        chosen.append([np.sort(indices, -1) for indices in rest])
    by_layer = zip(routers, zip(*chosen, strict=True), strict=True)
    return Routed(np.concatenate(logits), {layer: np.concatenate(x) for layer, x in by_layer})


def _routers(model: ir.Model) -> dict[int, ir.Node]:
    """Node that chooses the experts, by layer."""
    nodes = {str(node.name): node for node in model.graph}
    ends = [name for name in nodes if name.endswith(".router.top_k")]
    return {int(name.split(".")[1]): nodes[name] for name in ends}


def _replace_choice(graph: ir.Graph, node: ir.Node, layer: int) -> None:
    """Lets an input of the graph choose the experts; their scores stay the router's."""
    choice = ir.Value(
        name=f"choice.{layer}", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["T", "K"])
    )
    graph.inputs.append(choice)
    scores = ir.node(
        "GatherElements", [node.inputs[0], choice], attributes={"axis": -1}, name=f"scores.{layer}"
    )
    scores.outputs[0].name = f"scores.{layer}"
    graph.insert_after(node, scores)
    for old, new in zip(node.outputs, (scores.outputs[0], choice), strict=True):
        for use in list(old.uses()):
            use.node.replace_input_with(use.idx, new)


if __name__ == "__main__":
    main()
