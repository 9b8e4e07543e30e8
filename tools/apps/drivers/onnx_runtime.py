"""Answers prompts in ONNX Runtime with examples/load_in_onnxruntime.py.

python onnx_runtime.py FOLDER EXAMPLE NEW_TOKENS END < prompts > answers
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

folder, example, new_tokens, end = sys.argv[1:]
functions = runpy.run_path(example)
session = functions["open_session"](Path(folder))
for line in sys.stdin:
    ids = [int(word) for word in line.split()]
    answer = functions["generate"](session, ids, int(new_tokens), [int(end)])
    # The example leaves the end token out.
    print(*answer, *([end] if len(answer) < int(new_tokens) else []))
