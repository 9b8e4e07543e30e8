"""Registers pruned checkpoints with stock transformers, without importing transformers.

After `import moe_export`, `AutoConfig` and `AutoModelForCausalLM` load every model_type that starts
with `PRUNED_PREFIX`. Importing transformers and torch is slow, and most commands need neither, nor
numpy, which the families need. So every import here is inside a function, and registration is
delayed twice:

* A finder on `sys.meta_path` waits for the module of transformers that holds the registry of
  configs, and registers as soon as that module has run. If transformers was imported before
  moe_export, registration happens at once.
* The registered class is a stand-in, because the model and config modules of transformers import
  each other in circles and may be incomplete at that moment. When the stand-in is first asked for a
  config, it registers the real config and model classes and delegates to them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_REGISTRY = "transformers.models.auto.configuration_auto"


def register_when_imported() -> None:
    """Registers pruned checkpoints with transformers, now or as soon as it is imported."""
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
    registry = sys.modules.get(_REGISTRY)
    if registry is not None:
        _register_stand_ins(registry)


def _register(model_type: str) -> type[Any]:
    """Registers the real classes of a family, and returns its config class."""
    from transformers import AutoConfig  # noqa: PLC0415 - only now
    from transformers.utils import is_torch_available  # noqa: PLC0415 - only now

    from moe_export.families.transformers_config import (  # noqa: PLC0415 - only now
        pruned_config_class,
    )

    config_class = pruned_config_class(model_type)
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    if is_torch_available():  # without it transformers has no models either
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 - only now

        from moe_export.torch_model.auto import model_class  # noqa: PLC0415 - only now

        AutoModelForCausalLM.register(config_class, model_class(model_type), exist_ok=True)
    return config_class


def _register_stand_ins(registry: ModuleType) -> None:
    from moe_export.families import FAMILIES  # noqa: PLC0415 - only now

    for model_type in FAMILIES:
        stand_in = _stand_in(model_type)
        registry.AutoConfig.register(stand_in.model_type, stand_in, exist_ok=True)


def _stand_in(model_type: str) -> type[Any]:
    from transformers.configuration_utils import PretrainedConfig  # noqa: PLC0415 - only now

    from moe_export.families.base import PRUNED_PREFIX  # noqa: PLC0415 - only now

    def new(_cls: type[Any], /, *args: Any, **kwargs: Any) -> Any:
        return _register(model_type)(*args, **kwargs)

    def from_dict(_cls: type[Any], /, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        return _register(model_type).from_dict(config_dict, **kwargs)

    return type(
        "RaggedStandInConfig",
        (PretrainedConfig,),
        {
            "__module__": __name__,
            "model_type": PRUNED_PREFIX + model_type,
            "__new__": new,
            "from_dict": classmethod(from_dict),
        },
    )


class _AfterImport(MetaPathFinder):
    """Finder that registers the stand-ins when the registry of configs has been imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _REGISTRY:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register_stand_ins(module)

        # The loader belongs to this spec only, so that nothing else is affected.
        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
