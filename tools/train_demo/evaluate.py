"""Scores on held-out documents, with all experts per token and with half of them.

    python -m tools.train_demo.evaluate DIR      score a checkpoint and render its card again

A document counts as solved when the most likely token is the right one at every answer token and
at the final EOS; greedy generation then gives exactly this answer and stops.

B documents of a batch, L tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import Qwen2MoeForCausalLM

from moe_export.demo.tasks import test_items
from tools.train_demo.card import write_card
from tools.train_demo.model import build_model, load_weights, set_top_k
from tools.train_demo.packing import EncodedDocument, encode
from tools.train_demo.settings import PAD_ID

_BATCH_DOCUMENTS = 50


def write_scores(
    model: Qwen2MoeForCausalLM, tokenizer: Tokenizer, out: Path, counts: Mapping[str, int]
) -> None:
    """Write `scores.json`, and `scores_half.json` of the model with half of its top-k."""
    top_k = model.config.num_experts_per_tok
    for file, experts in (("scores.json", top_k), ("scores_half.json", top_k // 2)):
        set_top_k(model, experts)
        scores = evaluate(model, tokenizer, counts)
        (out / file).write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    set_top_k(model, top_k)


def evaluate(
    model: Qwen2MoeForCausalLM, tokenizer: Tokenizer, counts: Mapping[str, int]
) -> dict[str, dict[str, float]]:
    """Score the model on held-out documents.

    Args:
        model: The model in float32.
        tokenizer: the model's tokenizer.
        counts: number of test documents of each kind.

    Returns:
        Per kind `count`, `loss_nats` (plain cross-entropy per answer token, EOS left out) and,
        except for text, `exact_match` (fraction of solved documents).
    """
    model.train(False)
    scores = {}
    for kind, count in counts.items():
        documents = encode(tokenizer, test_items(kind, count))
        documents.sort(key=lambda document: len(document.token_ids))
        solved = tokens = 0
        loss_nats = 0.0
        for start in range(0, count, _BATCH_DOCUMENTS):
            part = _score_batch(model, documents[start : start + _BATCH_DOCUMENTS])
            solved, loss_nats, tokens = solved + part[0], loss_nats + part[1], tokens + part[2]
        scores[kind] = {"count": count, "loss_nats": loss_nats / tokens}
        if kind != "text":
            scores[kind]["exact_match"] = solved / count
    return scores


@torch.no_grad()
def _score_batch(
    model: Qwen2MoeForCausalLM, documents: list[EncodedDocument]
) -> tuple[int, float, int]:
    """Number of solved documents, summed loss in nats and number of answer tokens."""
    longest = max(len(document.token_ids) for document in documents)
    ids_BL = torch.full((len(documents), longest), PAD_ID)
    answer_BL = torch.zeros(ids_BL.shape, dtype=torch.bool)
    end_BL = torch.zeros(ids_BL.shape, dtype=torch.bool)
    for row, document in enumerate(documents):
        length = len(document.token_ids)
        ids_BL[row, :length] = torch.tensor(document.token_ids)
        answer_BL[row, document.answer_start : length - 1] = True
        end_BL[row, length - 1] = True
    # Padding is on the right, where causal attention never looks.
    logits_BLV = model(input_ids=ids_BL, use_cache=False).logits[:, :-1].float()
    labels_BL, answer_BL, end_BL = ids_BL[:, 1:], answer_BL[:, 1:], end_BL[:, 1:]
    right_BL = (logits_BLV.argmax(-1) == labels_BL) | ~(answer_BL | end_BL)
    loss_nats = functional.cross_entropy(
        logits_BLV[answer_BL], labels_BL[answer_BL], reduction="sum"
    )
    return int(right_BL.all(1).sum()), float(loss_nats), int(answer_BL.sum())


def _score_again(directory: Path) -> None:
    training = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    model = build_model(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    load_weights(model, directory / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    write_scores(model, tokenizer, directory, training["settings"]["test_counts"])
    write_card(directory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Score a checkpoint and render its card again.")
    parser.add_argument("directory", type=Path)
    _score_again(parser.parse_args().directory)
