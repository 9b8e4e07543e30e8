"""Exported models in Optimum, with generation by transformers; needs the extra `optimum`.

from moe_export.optimum import ORTModelForCausalLM
from transformers import AutoTokenizer

model = ORTModelForCausalLM.from_pretrained("runs/demo_50pct/export/pruned")
tokenizer = AutoTokenizer.from_pretrained("runs/demo_50pct/export/pruned")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import onnxruntime
import transformers
from optimum.onnxruntime import ORTModelForCausalLM as _ORTModelForCausalLM
from transformers import CONFIG_MAPPING

from moe_export.checkpoint import read_config
from moe_export.errors import DependencyError
from moe_export.op.library import register


class ORTModelForCausalLM(_ORTModelForCausalLM):  # type: ignore[misc]
    """Optimum's class for language models, for models that moe-export has exported.

    It registers the operator library, and takes the shape of the KV cache from the graph. Optimum
    computes that shape from the config by a list of model types, which is wrong for most families.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        missing = [s for s in self.input_shapes if s.endswith("_state")]
        if missing:
            raise DependencyError(
                f"Optimum has no cache for {missing[0]}; load the model by moe_export.load"
            )
        _, heads, _, head_dim = self.input_shapes["past_key_values.0.key"]
        self.num_key_value_heads, self.embed_size_per_head = heads, head_dim
        # Optimum's names for DeepSeek-V3, whose latent vectors are cached as two halves.
        self.qk_head_dim = self.v_head_dim = head_dim

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        *,
        operator: Literal["native", "portable"] = "native",
        session_options: onnxruntime.SessionOptions | None = None,
        **arguments: Any,
    ) -> Self:
        """Loads an exported model.

        Args:
            model_id: Folder of one exported model.
            operator: `native` runs the experts in the native library, `portable` as standard
                operators.
            session_options: Options of the session, without the library; the defaults if None.
            arguments: Further arguments of Optimum, such as `use_io_binding` or `provider`.

        Raises:
            DependencyError: The native library is absent, or the installed transformers does not
                know the family.
            CheckpointError: The folder has no config.json, or a damaged one.
        """
        _require_known(Path(model_id))
        options = session_options or _quiet_options()
        if operator == "native":
            register(options)
        loaded: Self = super().from_pretrained(model_id, session_options=options, **arguments)
        return loaded


def _quiet_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warning about the default of logits_from
    return options


def _require_known(directory: Path) -> None:
    """Stops at a family that is newer than the transformers that Optimum needs."""
    model_type = read_config(directory)["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise DependencyError(
            f"{directory}: transformers {transformers.__version__}, which Optimum needs, does not "
            f"know the model type {model_type}; load the model by moe_export.load"
        )
