"""llama.cpp's own conversion of a checkpoint to a GGUF file, without a tokenizer.

`convert` starts this module as a program that finds llama.cpp's converter in its sources: the
folder vendor/llama.cpp of the source archive of llama-cpp-python 0.3.36, which
`pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36` brings.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def convert(sources: Path, checkpoint: Path, out: Path, dtype: str = "bf16") -> None:
    """Writes the file, in a process of its own.

    Args:
        sources: Folder of llama.cpp's sources.
        checkpoint: Folder of a checkpoint whose experts have one width.
        out: Path of the file.
        dtype: Dtype of matrices, bf16 or f32.

    Raises:
        CalledProcessError: llama.cpp does not convert it.
    """
    words = [str(path.absolute()) for path in (checkpoint, out)]
    folders = (ROOT, sources.absolute(), sources.absolute() / "gguf-py")
    subprocess.run(
        [sys.executable, "-m", "tools.gguf.converted", *words, dtype],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
        check=True,
    )


def main(checkpoint: str, out: str, dtype: str) -> None:
    """Imports llama.cpp's converter and runs it."""
    conversion, gguf, torch = map(import_module, ("conversion", "gguf", "torch"))
    kinds = {"bf16": gguf.LlamaFileType.MOSTLY_BF16, "f32": gguf.LlamaFileType.ALL_F32}
    folder, base = Path(checkpoint), conversion.ModelBase
    architecture = conversion.get_model_architecture(
        base.load_hparams(folder, False), conversion.ModelType.TEXT
    )
    family = conversion.get_model_class(architecture, mmproj=False)
    # It knows tokenizers by their hashes; those of random models are invented.
    family.set_vocab = _without_tokenizer
    if family.supports_mtp_export:
        family.no_mtp = True
    with torch.inference_mode():
        family(folder, kinds[dtype], Path(out)).write()


def _without_tokenizer(converter: Any) -> None:
    converter._set_vocab_none()  # noqa: SLF001 - there is no public way
    converter.gguf_writer.add_vocab_size(converter.hparams["vocab_size"])


if __name__ == "__main__":
    main(*sys.argv[1:])
