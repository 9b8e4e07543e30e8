"""Answers texts in batches padded on the left, by `generate` of transformers.

python transformers_generate.py FOLDER NEW_TOKENS END < texts > answers

An export runs in Optimum with `moe_export.optimum`, a checkpoint in transformers alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 8

folder, new_tokens, end = sys.argv[1:]
if (Path(folder) / "model.onnx").exists():
    from moe_export.optimum import ORTModelForCausalLM

    operator = "native" if (Path(folder) / "libmoe_export_ops.so").exists() else "portable"
    model = ORTModelForCausalLM.from_pretrained(folder, operator=operator)
else:
    model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
texts = [json.loads(line) for line in sys.stdin]
for first in range(0, len(texts), BATCH):
    inputs = tokenizer(
        texts[first : first + BATCH],
        return_tensors="pt",
        padding=True,
        return_token_type_ids=False,
    )
    made = model.generate(**inputs, max_new_tokens=int(new_tokens), do_sample=False)
    for row in made[:, inputs["input_ids"].shape[1] :].tolist():
        print(*(row[: row.index(int(end)) + 1] if int(end) in row else row))
