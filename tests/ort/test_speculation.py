"""Tests of steps with several greedy tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe_export.demo import checkpoint_dir
from moe_export.errors import RecipeError
from moe_export.ort.decoding import generate
from moe_export.ort.model import Model
from moe_export.ort.session import OrtModel
from moe_export.ort.speculation import FIRST_PAUSE, Lookup, Speculation, taken
from moe_export.stages.export import export_model


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speculation")
    export_model(checkpoint_dir(), folder / "demo", "float32")
    return folder / "demo"


def test_a_draft_follows_the_latest_and_longest_earlier_occurrence() -> None:
    lookup = Lookup([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3])
    assert lookup.draft(3) == [4, 9, 2]  # 1 2 3 is longer than the later 2 3
    assert lookup.draft(0) == []
    lookup.add(5)
    assert lookup.draft(2) == [1, 2]
    lookup.add(7)
    assert lookup.draft(2) == []


def logits(*tokens: int, lead: float = 1.0) -> np.ndarray:
    """Logits with the given most likely tokens, on a range of 1 above the others."""
    rows = np.zeros((len(tokens), 8), np.float32)
    rows[:, 7] = -1
    rows[np.arange(len(tokens)), tokens] = lead
    return rows


def test_tokens_are_taken_up_to_the_first_that_the_model_would_not_choose() -> None:
    assert taken(logits(3, 4, 5), [3, 4]) == [3, 4, 5]
    assert taken(logits(3, 6, 5), [3, 4]) == [3, 6]
    assert taken(logits(2, 4, 5), [3, 4]) == [2]


def test_a_token_that_another_nearly_ties_with_is_left_to_a_step_of_its_own() -> None:
    rows = np.concatenate([logits(3), logits(4, lead=0.01), logits(5)])
    assert taken(rows, [3, 4]) == [3]
    assert taken(logits(3, 4, 5, lead=0.01), [3, 4]) == []


def test_drafts_pause_while_they_do_not_pay_and_are_tried_again() -> None:
    speculation = Speculation([1, 2, 3, 1, 2])
    speculation.ran_one(1.0)
    assert speculation.draft(8) == [3, 1, 2]
    speculation.ran_draft(3, 1, 2.0)  # one token in the time of two
    for _ in range(FIRST_PAUSE):
        assert speculation.draft(8) == []
    assert speculation.draft(8) == [3, 1]
    speculation.ran_draft(2, 3, 2.0)  # three tokens in the time of two
    assert speculation.draft(8) == [3, 1, 2]
    assert (speculation.drafted, speculation.accepted) == (5, 2)


@pytest.mark.parametrize("new_tokens", [1, 2, 90])
def test_tokens_are_those_of_decoding_one_by_one(demo: Path, new_tokens: int) -> None:
    model = OrtModel(demo, threads=1)
    accepted = 0
    for seed in range(4):
        prompt = [1, *np.random.default_rng(seed).integers(2, 1000, 6).tolist()] * 2
        expected = list(generate(model, prompt, new_tokens, []))
        speculation = Speculation(prompt)
        # Drafts are tried whatever they cost on a busy machine.
        speculation.ran_one(1e6)
        assert list(generate(model, prompt, new_tokens, [], speculation)) == expected
        accepted += speculation.accepted
        eos = expected[-1]
        ended = list(generate(model, prompt, new_tokens, [eos], Speculation(prompt)))
        assert ended == expected[: expected.index(eos) + 1]
    assert accepted > 40 if new_tokens == 90 else accepted == 0


def test_speculation_with_a_growing_cache_is_refused(demo: Path) -> None:
    model = Model(demo, "cpu", "native", "growing")
    with pytest.raises(RecipeError, match=r"needs the provider cpu and the cache static, not cpu"):
        model.generate("12+30=", speculate=True)
    model = Model(demo, "cpu", "native", "static")
    plain = model.generate("12+30=", 8)
    assert model.generate("12+30=", 8, speculate=True) == plain
