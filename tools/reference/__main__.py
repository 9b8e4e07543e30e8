"""Writes the generated pages of docs/reference.

python -m tools.reference            writes them
python -m tools.reference --check    says which of them differ from the code, and fails if any does
"""

from __future__ import annotations

import sys

from tools.reference.pages import PAGES, ROOT, stale


def main(arguments: list[str]) -> int:
    """Writes or checks the pages; returns the exit code."""
    if arguments == ["--check"]:
        names = stale()
        print(
            "\n".join(
                f"{name} is not what the code says; run python -m tools.reference" for name in names
            )
        )
        return 1 if names else 0
    for name, page in PAGES.items():
        (ROOT / name).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
