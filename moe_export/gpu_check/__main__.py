"""`python -m moe_export.gpu_check`: `moe-export check-gpu` where rich and pydantic are absent."""

from __future__ import annotations

import argparse
import sys

from moe_export.errors import MoeExportError
from moe_export.gpu_check.command import check_gpu
from moe_export.gpu_check.options import add_options


def main() -> int:
    """Runs the check; returns its exit code."""
    parser = argparse.ArgumentParser(prog="check-gpu")
    add_options(parser)
    try:
        check_gpu(parser.parse_args())
    except MoeExportError as error:
        sys.stdout.flush()
        print(f"check-gpu: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
