"""Train a demo model and write its checkpoint, scores and model card.

    python -m tools.train_demo --out moe_export/demo/model
    python -m tools.train_demo --model demo-narrow --out moe_export/demo/narrow

About 0.36 s a step on two free cores. The same seed gives the same weights on one machine and one
torch build; elsewhere rounding differs, so the shipped weights are pinned by their SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import Qwen2MoeForCausalLM

from tools.train_demo.card import write_card
from tools.train_demo.configs import CONFIGS, SETTINGS
from tools.train_demo.evaluate import write_scores
from tools.train_demo.loop import train
from tools.train_demo.model import build_model, round_to_float16, save_weights
from tools.train_demo.settings import BOS_ID, EOS_ID, PAD_ID, Settings, smoke
from tools.train_demo.text import training_paragraphs
from tools.train_demo.tokenizer import save_tokenizer, train_tokenizer


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_demo", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--model", choices=CONFIGS, default="demo", help="model to train")
    parser.add_argument("--steps", type=int, help="steps, if not those of the shipped model")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--smoke", action="store_true", help="30 small steps, for tests")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given = {key: getattr(arguments, key) for key in ("steps", "seed", "threads")}
    known = {key: value for key, value in given.items() if value is not None}
    settings = replace(SETTINGS[arguments.model], **known)
    run(smoke(settings) if arguments.smoke else settings, arguments.out, arguments.model)


def run(settings: Settings, out: Path, name: str = "demo") -> None:
    """Train a model of `CONFIGS`, score its float16-rounded weights and write all to `out`."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    started_s, started_cpu_s = time.monotonic(), time.process_time()
    paragraphs = training_paragraphs()
    tokenizer = train_tokenizer(paragraphs, settings.tokenizer_documents)
    model = build_model(CONFIGS[name])
    trained_tokens = train(model, tokenizer, paragraphs, settings)
    round_to_float16(model)
    weights_sha256 = _write_checkpoint(model, CONFIGS[name], tokenizer, out)
    training = {
        "model": name,
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": trained_tokens,
        "wall_s": round(time.monotonic() - started_s, 1),
        "cpu_s": round(time.process_time() - started_cpu_s, 1),
        "text_paragraphs": len(paragraphs),
        "text_sha256": hashlib.sha256("\n".join(paragraphs).encode()).hexdigest(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        },
        "weights_sha256": weights_sha256,
    }
    _write_json(out / "training.json", training)
    write_scores(model, tokenizer, out, settings.test_counts)
    write_card(out)


def _write_checkpoint(
    model: Qwen2MoeForCausalLM, config: Mapping[str, Any], tokenizer: Tokenizer, out: Path
) -> str:
    """Write weights, configurations and tokenizer; returns the SHA-256 of the weights file."""
    out.mkdir(parents=True, exist_ok=True)
    save_weights(model, out / "model.safetensors")
    _write_json(out / "config.json", config)
    _write_json(
        out / "generation_config.json",
        {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID},
    )
    save_tokenizer(tokenizer, out)
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
