"""`python -m moe_export`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from moe_export.cli import main
    except KeyboardInterrupt:  # before the command line can handle it
        sys.exit(130)
    sys.exit(main())
