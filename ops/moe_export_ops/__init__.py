"""The operator library of moe-export, for machines that only run exported models.

```
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(moe_export_ops.library_path())
```
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["library_path"]

_NAMES = {"win32": "moe_export_ops.dll", "darwin": "libmoe_export_ops.dylib"}


def library_path() -> str:
    """File of the library, for `SessionOptions.register_custom_ops_library`.

    Raises:
        FileNotFoundError: The package holds no library for this system.
    """
    path = Path(__file__).with_name(_NAMES.get(sys.platform, "libmoe_export_ops.so"))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; install a wheel of moe-export-ops for this system, or run the "
            "model without the library, as standard operators"
        )
    return str(path)
