"""Config file with which onnxruntime-genai runs an exported decoder."""

from __future__ import annotations

from typing import Any

from moe_export.families.base import ModelSpec
from moe_export.families.states import cached_shape, states
from moe_export.variants import MODEL_FILE, PAST_PREFIX, PRESENT_PREFIX

CONFIG_FILE = "genai_config.json"

SEARCH_KEYS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
"""Keys that are copied from `generation_config.json` if it has them."""

MAX_LENGTH = 4096
"""Default limit of prompt and new tokens together. onnxruntime-genai takes the memory of the KV
cache for that many tokens at once; an application can set another limit up to the context."""


def genai_config(
    spec: ModelSpec,
    config: dict[str, Any],
    generation: dict[str, Any],
    library: str | None = None,
    provider: str | None = None,
) -> dict[str, Any]:
    """Content of `genai_config.json`.

    Args:
        spec: Sizes of the model.
        config: Content of `config.json`.
        generation: Content of `generation_config.json`, which has precedence; empty if absent.
        library: File name of the operator library beside the model; None if there is none.
        provider: Execution provider that runs the model, such as `cuda`; None for the CPU.
    """
    cached_heads, head_size = cached_shape(spec)
    # The only key of free text; ONNX Runtime begins the lines of its log with it.
    code = "standard operators" if library is None else library
    options: list[dict[str, Any]] = [] if provider is None else [{provider: {}}]
    session: dict[str, Any] = {"log_id": f"experts in {code}", "provider_options": options}
    if library is not None:
        session["custom_ops_library"] = library
    tokens = {
        key: generation.get(key, config.get(key))
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    if tokens["pad_token_id"] is None:
        end = tokens["eos_token_id"]
        tokens["pad_token_id"] = end[0] if isinstance(end, list) and end else end
    return {
        "model": {
            "type": spec.family.genai_type,
            **{key: value for key, value in tokens.items() if value is not None},
            "context_length": spec.max_positions,
            "vocab_size": spec.vocab_size,
            "decoder": {
                "filename": MODEL_FILE,
                "session_options": session,
                "head_size": head_size,
                "hidden_size": spec.hidden_size,
                "num_attention_heads": spec.num_heads,
                "num_key_value_heads": cached_heads,
                "num_hidden_layers": spec.num_layers,
                **_layer_types(spec),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                    **_state_names(spec, "past", PAST_PREFIX),
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                    **_state_names(spec, "present", PRESENT_PREFIX),
                },
            },
        },
        "search": {
            "do_sample": False,
            **{key: generation[key] for key in SEARCH_KEYS if generation.get(key) is not None},
            "max_length": min(spec.max_positions, MAX_LENGTH),
            # Without a shared buffer onnxruntime-genai cannot append a turn to an unfinished one.
            "past_present_share_buffer": True,
        },
    }


def _layer_types(spec: ModelSpec) -> dict[str, list[str]]:
    """Word of each layer's mixer, which onnxruntime-genai needs if there are several kinds."""
    words = {mixer: word for word, mixer in spec.family.mixers.items()}
    return {"layer_types": [words[mixer] for mixer in spec.mixers]} if words else {}


def _state_names(spec: ModelSpec, when: str, prefix: str) -> dict[str, str]:
    """Names of the states of fixed size, by the key of onnxruntime-genai for their kind."""
    kinds = dict.fromkeys(s.past.rpartition(".")[2] for s in states(spec) if s.after is None)
    return {f"{when}_{kind.removesuffix('_state')}_names": f"{prefix}%d.{kind}" for kind in kinds}
