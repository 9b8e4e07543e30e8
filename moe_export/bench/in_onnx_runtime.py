"""An exported model in ONNX Runtime, timed on request.

`python -m moe_export.bench.in_onnx_runtime DIRECTORY OPERATOR THREADS` answers `requests`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from moe_export.bench.requests import Sizes, answer_requests
from moe_export.ort.decoding import open_cache
from moe_export.ort.session import OrtModel
from moe_export.system.processes import end_with_parent


def timer(directory: Path, operator: str, threads: int) -> Callable[[Sizes], dict[str, float]]:
    """Loads a model and returns the function that times it."""
    model = OrtModel(directory, threads=threads, operator=operator)
    vocabulary = model.session.get_outputs()[0].shape[-1]

    def decode(sizes: Sizes) -> dict[str, float]:
        cache = open_cache(model, sizes.batch, sizes.prompt_tokens + sizes.new_tokens)
        return sizes.time(vocabulary, cache.prompt, lambda ids_B1: cache.token(ids_B1[:, 0]))

    return decode


if __name__ == "__main__":
    import onnxruntime  # noqa: F401 - loaded before memory is counted

    end_with_parent()
    folder, word, count = sys.argv[1:]
    answer_requests(lambda: timer(Path(folder), word, int(count)))
