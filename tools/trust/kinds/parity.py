"""Largest difference between the logits of an exported model and of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TOKENS = (5, 17, 99, 3, 200, 42, 7, 111)


def difference(checkpoint: Path, exported: Path) -> float | None:
    """Returns the largest difference over a few tokens; None if transformers refuses the model.

    Args:
        checkpoint: Folder of a checkpoint.
        exported: Folder of a model that was exported from it, with nothing removed.
    """
    import torch  # noqa: PLC0415 - only in the process of a case
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    from moe_export import api  # noqa: PLC0415

    torch.set_num_threads(1)
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
            config.pad_token_id = None  # moe-export leaves it out, too
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint, config=config, dtype=torch.float32, attn_implementation="eager"
        )
    except Exception:  # noqa: BLE001 - whatever it raises
        return None
    with torch.no_grad():
        theirs_TV = model(torch.tensor([TOKENS])).logits[0].numpy()
    ours_TV = api.load(exported).logits(TOKENS)
    return float(np.abs(ours_TV - theirs_TV).max())
