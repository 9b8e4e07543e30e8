"""Answers texts in onnxruntime-genai, with its own tokenizer.

python genai.py FOLDER NEW_TOKENS < texts > answers
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

folder, new_tokens = sys.argv[1:]
model = og.Model(folder)
tokenizer = og.Tokenizer(model)
settings, config = (
    json.loads((Path(folder) / name).read_text(encoding="utf-8"))
    for name in ("tokenizer_config.json", "genai_config.json")
)
bos = []
if hasattr(tokenizer, "update_options"):
    tokenizer.update_options(add_special_tokens="true")
elif settings["add_bos_token"]:  # versions before it leave BOS to the caller
    bos = [config["model"]["bos_token_id"]]
for line in sys.stdin:
    ids = np.array([*bos, *tokenizer.encode(json.loads(line))], np.int32)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + int(new_tokens), do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(ids)
    answer = []
    while not generator.is_done():
        generator.generate_next_token()
        answer.append(int(generator.get_next_tokens()[0]))
    print(*answer)
