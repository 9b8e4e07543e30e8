"""The model card, rendered from the JSON files of a checkpoint only.

python -m tools.train_demo.card DIR      render the card again
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from string import Template
from typing import Any

_TASKS = {
    "arithmetic": "word problems of 1-3 steps with working; at least one step uses a pair of "
    "numbers never added or subtracted in training (the swapped pair may be)",
    "sums": "bare sums such as `12+30=`, pairs never seen in training",
    "facts": "countries and elements, each asked in the one of five wordings never trained for it",
    "strings": "copy, reverse or sort 3-7 letters, sequences never seen in training",
    "text": "paragraphs of the Python documentation; no training paragraph starts with the same 32 "
    "letters",
}

_TITLES = {"demo": "The demo model", "demo-narrow": "The demo model of narrow experts"}

_PURPOSES = {
    "demo": "so that accuracy before and after pruning means something on any laptop without a\n"
    "download.",
    "demo-narrow": "to show what a model loses with fewer experts per token, and what tuning\n"
    "brings back.",
}

_OPTIONS = {
    "demo": "--out moe_export/demo/model",
    "demo-narrow": "--model demo-narrow --out moe_export/demo/narrow",
}

_CARD = Template("""\
---
license: apache-2.0
pipeline_tag: text-generation
---

# $title

A Mixture-of-Experts language model of $parameters parameters, trained from scratch for
moe-export, $purpose It has skills that can be scored exactly: arithmetic, facts, string exercises
and plain text. It is of no use for anything else.

| `Qwen2MoeForCausalLM` | |
|---|---|
| layers, hidden size | $num_hidden_layers, $hidden_size |
| attention heads, key-value heads | $num_attention_heads, $num_key_value_heads |
| experts of a layer, used by a token | $num_experts, $num_experts_per_tok |
| width of an expert | $moe_intermediate_size |
| width of the shared expert | $shared_expert_intermediate_size |
| context | $max_position_embeddings tokens |
| weights on disk | float16 |

The tokenizer is a byte-level BPE of $vocab_size tokens with one token per digit. It puts
`<|endoftext|>` in front of a prompt, and the model emits `<|endoftext|>` after an answer's newline.

## Scores on held-out documents

Measured on the float16-rounded weights in float32 arithmetic (`scores.json`). A document is solved
when every token of its answer, working and final `<|endoftext|>` included, is the most likely one:
greedy generation then gives exactly that answer.

The last two columns are with $half of the $num_experts_per_tok experts per token, and no training
for it.

| task | documents | solved | answer loss (nats/token) | solved, $half | loss, $half |
|---|---|---|---|---|---|
$score_rows

$task_rows

## Data

All data are generated or shipped with the package (`moe_export/demo/tasks.py`,
`moe_export/demo/data`), except that training also uses $text_paragraphs paragraphs read from the
standard library of Python $python; another Python version gives slightly other text. The test
paragraphs are fixed by the package and never trained on. Facts: countryinfo (MIT) and
periodictable (public domain); text: Python documentation (PSF-2.0). See
`moe_export/demo/data/LICENSES.md`.

## Training

`python -m tools.train_demo $options` from the repository root.

| | |
|---|---|
| steps, tokens | $steps, $tokens |
| seed, threads | $seed, $threads |
| wall time on a busy two-core CPU | $minutes minutes |
| CPU time | $cpu_minutes minutes |
| torch, transformers | $torch, $transformers |

Muon trains the projection matrices, AdamW the rest. Label smoothing of $label_smoothing in the last
$smoothed_percent % of the steps keeps the gradients of mastered tasks from vanishing, which
importance by cross-entropy needs. Every setting is in `training.json`.

Another machine or torch build rounds differently and ends at slightly other weights, so the file
is pinned: SHA-256 of `model.safetensors` is
`$weights_sha256`.

Weights and tokenizer are under the licence of moe-export (Apache-2.0).

## Limits

* Numbers up to a few hundred, letters a-z, English prompts in the trained wordings only.
* Facts are as their sources state them; some are out of date.
* A model this small tolerates quantization unusually well. It shows that a pipeline works; it says
  little about the quality loss of a large model.
""")


def write_card(directory: Path) -> None:
    """Render `README.md` of a checkpoint directory from its own JSON files."""
    scores, half, training, config = (
        _read(directory / f"{name}.json")
        for name in ("scores", "scores_half", "training", "config")
    )
    settings, name = training["settings"], training["model"]
    values = {
        **config,
        **training["versions"],
        **{key: settings[key] for key in ("steps", "seed", "threads", "label_smoothing")},
        "title": _TITLES[name],
        "purpose": _PURPOSES[name],
        "options": _OPTIONS[name],
        "half": config["num_experts_per_tok"] // 2,
        "parameters": _thousands(training["parameters"]),
        "tokens": _thousands(training["tokens"]),
        "text_paragraphs": training["text_paragraphs"],
        "minutes": round(training["wall_s"] / 60),
        "cpu_minutes": round(training["cpu_s"] / 60),
        "smoothed_percent": round(100 * settings["smoothed_fraction"]),
        "weights_sha256": training["weights_sha256"],
        "score_rows": "\n".join(_score_row(kind, scores[kind], half[kind]) for kind in scores),
        "task_rows": "\n".join(f"* {kind}: {meaning}" for kind, meaning in _TASKS.items()),
    }
    (directory / "README.md").write_text(_CARD.substitute(values), encoding="utf-8")


def _score_row(kind: str, score: dict[str, float], half: dict[str, float]) -> str:
    cells = [kind, f"{score['count']}"]
    for each in (score, half):
        cells.append(f"{100 * each['exact_match']:.1f} %" if "exact_match" in each else "-")
        cells.append(f"{each['loss_nats']:.4f}")
    return f"| {' | '.join(cells)} |"


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _thousands(number: int) -> str:
    return f"{number:,}".replace(",", " ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Render the model card from its JSON files.")
    parser.add_argument("directory", type=Path)
    write_card(parser.parse_args().directory)
