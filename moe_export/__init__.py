"""moe-export: prune a Mixture-of-Experts model by expert dimension and run it in ONNX Runtime.

    import moe_export

    result = moe_export.run("recipes/demo_50pct.yaml", "runs/demo")
    model = moe_export.load(result.directory)
    print(model.generate("12+30="))

The functions are documented in `moe_export.api`, which is imported when one is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_export._transformers import register_when_imported

if TYPE_CHECKING:
    from moe_export.api import (
        Model,
        Plan,
        Recipe,
        RunResult,
        Watcher,
        compare,
        evaluate,
        generate,
        load,
        plan,
        read_recipe,
        register_score,
        run,
    )

try:
    __version__ = version("moe-export")
except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
    __version__ = "0+source"

register_when_imported()


def library_path() -> Path:
    """The native operator library, for `SessionOptions.register_custom_ops_library(str(...))`.

    Raises:
        DependencyError: moe-export was installed without it.
    """
    from moe_export.op import library  # noqa: PLC0415 - importing moe_export loads nothing heavy

    return library.library_path()


def __getattr__(name: str) -> Any:
    """A name of `moe_export.api`, which loads numpy and pydantic, when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("moe_export.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "Model",
    "Plan",
    "Recipe",
    "RunResult",
    "Watcher",
    "__version__",
    "compare",
    "evaluate",
    "generate",
    "library_path",
    "load",
    "plan",
    "read_recipe",
    "register_score",
    "run",
]
