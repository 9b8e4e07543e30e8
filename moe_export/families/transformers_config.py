"""Config classes with which transformers loads pruned checkpoints."""

from __future__ import annotations

from functools import cache
from typing import Any

from moe_export.errors import DependencyError
from moe_export.families import FAMILIES, spec_of
from moe_export.families.base import PRUNED_PREFIX
from moe_export.families.config import all_names
from moe_export.families.rope import rope_facts


@cache
def pruned_config_class(model_type: str) -> type[Any]:
    """Config class for a family's pruned checkpoints, derived from the family's own class.

    Args:
        model_type: Model type of the family, without the prefix of pruned checkpoints.

    Raises:
        DependencyError: The installed transformers does not know the family.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: PLC0415 - only now

    if model_type not in CONFIG_MAPPING:
        import transformers  # noqa: PLC0415 - only now

        raise DependencyError(
            f"transformers {transformers.__version__} does not know {model_type}; install a newer "
            "one: pip install --upgrade transformers"
        )
    base = CONFIG_MAPPING[model_type]

    def from_dict(cls: type[Any], /, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # transformers 4 reads neither rope_parameters nor the size names of transformers 5, so
        # every value is passed under all its names.
        spec = spec_of(config_dict)
        known: dict[str, Any] = {"rope_theta": spec.rope_theta}
        pad = config_dict.get("pad_token_id")
        if pad is not None and not -spec.vocab_size <= pad < spec.vocab_size:
            # torch refuses a row that the embedding has not; such a token cannot be looked up.
            known["pad_token_id"] = None
        known |= all_names(FAMILIES[model_type], config_dict)
        rope = rope_facts(config_dict)
        if rope["rope_type"] != "default":
            known["rope_scaling"] = rope
        return super(config_class, cls).from_dict(config_dict | known, **kwargs)

    config_class: Any = type(
        f"Ragged{base.__name__}",
        (base,),
        {
            "__doc__": f"Config of a pruned {model_type} checkpoint.",
            "__module__": __name__,
            "model_type": PRUNED_PREFIX + model_type,
            "from_dict": classmethod(from_dict),
        },
    )
    return config_class  # type: ignore[no-any-return]
