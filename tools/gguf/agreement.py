"""Distance between logits of tiny models in torch and in llama.cpp, converted by llama.cpp.

    python -m tools.gguf.agreement LIBRARIES SOURCES

LIBRARIES as for `python -m tools.pages speed`, SOURCES as in tools/gguf/converted.py. It
shows that both run the same models; llama.cpp's cache is float16, and so are some of its products.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe_export.bench.in_llama_cpp import LlamaModel
from moe_export.testing.families import GLM4_MOE_LITE, LFM2_MOE, QWEN3_5_MOE_TEXT
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model
from tools.gguf.converted import convert

MODELS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    (LFM2_MOE.config, {}),
    (GLM4_MOE_LITE.config, {"q_lora_rank": 24}),
    (QWEN3_5_MOE_TEXT.config, {"linear_value_head_dim": 16}),
)
"""Configs, and changes without which llama.cpp does not load them."""

PROMPT, TOKENS = 20, 24
LARGEST = 5e-3
"""Relative rms of a float16 cache; observed: 2e-4 to 1.5e-3."""


def main(libraries: str, sources: str) -> int:
    """Prints the distance for each model; returns 1 if one is too large."""
    found = {}
    for config, changes in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            tiny_checkpoint(place / "model", base=config, **changes)
            convert(Path(sources), place / "model", place / "model.gguf", "f32")
            found[config["model_type"]] = distance(place, Path(libraries))
    for name, value in found.items():
        print(f"{name}: {value:.1e}")
    return 1 if max(found.values()) > LARGEST else 0


def distance(place: Path, libraries: Path) -> float:
    """Relative rms between logits of the last token, decoded through the cache in llama.cpp."""
    ids_1S = np.random.default_rng(0).integers(0, 256, (1, TOKENS))
    with torch.no_grad():
        logits = load_torch_model(place / "model", torch.float32)(torch.from_numpy(ids_1S)).logits
    ours_V = logits[0, -1].numpy()
    model = LlamaModel(place / "model.gguf", libraries, 1)
    context = model.open(1, 2 * TOKENS)
    context.append(ids_1S[:, :PROMPT])
    for position in range(PROMPT, TOKENS):
        context.append(ids_1S[:, position : position + 1])
    theirs_V = context.logits(model.vocabulary)
    context.close()
    return float(np.linalg.norm(ours_V - theirs_V) / np.linalg.norm(ours_V))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
