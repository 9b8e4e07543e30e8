"""Tests of wrong values in a `config.json`: each is a sentence, or a model that can be built."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from typing import Any

import pytest

from moe_export.errors import CheckpointError
from moe_export.families import FAMILIES, spec_of
from moe_export.families.schema import FLAGS, TOKEN_IDS
from moe_export.graph import predicted_bytes
from moe_export.testing.families import ROWS, YARN, FamilyRow

WRONG: tuple[Any, ...] = (
    None,
    True,
    "false",
    "",
    "12",
    -1,
    0,
    1,
    3,
    2.5,
    10**6,
    10**9,
    10**400,
    1e308,
    1e-320,
    math.inf,
    -math.inf,
    math.nan,
    [],
    [[1]],
    [None],
    {},
    {"rope_type": []},
    {"a": 1},
    "\ud800",
)

SECTION = (*YARN, "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "type")
"""Keys within rope_scaling."""


def keys_of(row: FamilyRow) -> list[str]:
    family = FAMILIES[row.model_type]
    named = [
        key
        for keys in family.config_keys.values()
        for key in ((keys,) if isinstance(keys, str) else keys)
    ]
    more = ("head_dim", "sliding_window", "mlp_only_layers", "decoder_sparse_step", "topk_method")
    sections = ("rope_scaling", "rope_parameters", "quantization", "expert_widths")
    return sorted({*row.config, *named, *more, *sections, *FLAGS, *TOKEN_IDS, *family.refused})


def configs(row: FamilyRow) -> Iterator[dict[str, Any]]:
    for value in WRONG:
        for key in keys_of(row):
            yield row.config | {key: value}
        for key in SECTION:
            yield row.config | {"rope_scaling": YARN | {"mscale": 1.2, key: value}}
        yield row.config | {
            "model_type": f"moe_export_{row.model_type}",
            "expert_widths": [[value] * 6] * 3,
        }


def refusal(config: dict[str, Any]) -> str | None:
    """Sentence with which a config is refused; None if a model can be built from it."""
    try:
        spec = spec_of(config)
    except CheckpointError as error:
        return str(error)
    assert predicted_bytes(spec, "float32").total_bytes > 0
    return None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model_type)
def test_every_wrong_value_is_refused_in_one_sentence_or_can_be_built(row: FamilyRow) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sentences = [sentence for config in configs(row) if (sentence := refusal(config))]
    assert len(sentences) > 500
    assert max(map(len, sentences)) < 1000
    assert not any("\n" in sentence for sentence in sentences)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model_type)
def test_sizes_that_do_not_fit_each_other_are_refused(row: FamilyRow) -> None:
    experts = FAMILIES[row.model_type].config_keys["num_experts"]
    names = (experts,) if isinstance(experts, str) else experts
    for change in (
        {"num_experts_per_tok": 7},
        {"num_experts_per_tok": 0},
        {"num_key_value_heads": 3},
        {"num_hidden_layers": 10**6},
        {"num_hidden_layers": 1000, **dict.fromkeys(names, 10**4)},
        dict.fromkeys(names, 0),
        dict.fromkeys(names, 6.0),
        {"lm_head_bias": True, "model_type": "qwen2_moe", "num_experts": 6},
    ):
        with pytest.raises(CheckpointError, match=r"^config\.json: "):
            spec_of(row.config | change)


def test_a_hidden_size_that_the_heads_do_not_divide_is_refused() -> None:
    config = ROWS[0].config | {"hidden_size": 65}
    with pytest.raises(CheckpointError, match=r"hidden_size 65 cannot be divided among the 4"):
        spec_of(config)
    assert spec_of(config | {"head_dim": 16}).head_dim == 16


@pytest.mark.parametrize("key", FLAGS)
def test_text_is_no_flag(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"{key} is 'false', expected true or false"):
        spec_of(ROWS[0].config | {key: "false"})


@pytest.mark.parametrize(
    ("key", "value"),
    [("eos_token_id", "x"), ("eos_token_id", [[1]]), ("eos_token_id", 1.5), ("bos_token_id", True)],
)
def test_a_token_id_is_a_number(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"{key} is .*, expected a token id"):
        spec_of(ROWS[0].config | {key: value})
