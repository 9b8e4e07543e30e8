"""The budget solver on numbers made by hand, against every choice there is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from moe_export.errors import PlanError
from moe_export.planning.budget import Blocks, Chosen, Option, choose, fit, loss_of

FLOAT, INT8, INT4 = (
    Option("float", 4.0, 0.0, 0.0),
    Option("int8", 1.0, 0.0, 0.001),
    Option("int4", 0.5, 0.0, 0.05),
)
OPTIONS = [FLOAT, INT8, INT4]


def solved(
    layers: Sequence[Blocks], options: Sequence[list[Option]], budget: float
) -> list[Chosen]:
    return fit(layers, options, budget, lambda chosen: sum(c.size_bytes for c in chosen) <= budget)


def blocks_of(*blocks: tuple[int, float], share: Sequence[float] | None = None) -> Blocks:
    """Blocks of four rows: the expert and the value of each."""
    experts, values = zip(*blocks, strict=True)
    rounding = np.nan_to_num(np.array(values), posinf=0.0)
    shares = np.ones(len(blocks)) if share is None else np.array(share)
    return Blocks(np.array(experts), np.full(len(blocks), 4), np.array(values), rounding, shares)


def layer_of(seed: int, experts: int = 2, blocks: int = 3) -> Blocks:
    values = np.sort(np.random.default_rng(seed).lognormal(0, 2, (experts, blocks)))[:, ::-1]
    return blocks_of(*((e, float(v)) for e, row in enumerate(values) for v in row))


def best_of_all(layers: Sequence[Blocks], options: list[Option], budget: float) -> float:
    """The least loss over every format of every layer and every set of blocks that fits."""
    kinds = []
    for blocks in layers:
        found = []
        for option, *taken in product(options, *([(False, True)] * len(blocks.rows_B))):
            chosen = Chosen(option, blocks, np.array(taken))
            found.append((chosen.size_bytes, chosen.loss))
        kinds.append(found)
    return min(
        sum(loss for _, loss in combination)
        for combination in product(*kinds)
        if sum(size for size, _ in combination) <= budget
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [3.0, 7.0, 12.0, 20.0, 40.0])
def test_it_loses_no_more_than_the_best_of_all_choices_with_a_block_less(
    seed: int, budget: float
) -> None:
    layers = [layer_of(seed), layer_of(seed + 100)]
    found = solved(layers, [OPTIONS, OPTIONS], budget)
    assert sum(layer.size_bytes for layer in found) <= budget
    # Blocks are taken whole, in one order, so less than one of the dearest is left over.
    least_room = budget - 4 * FLOAT.row_bytes
    if least_room >= 0:
        assert loss_of(found) <= best_of_all(layers, OPTIONS, least_room)
    assert loss_of(found) >= best_of_all(layers, OPTIONS, budget) - 1e-12


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [5.0, 9.0, 15.0, 30.0, 60.0])
def test_no_format_that_is_the_same_everywhere_loses_less(seed: int, budget: float) -> None:
    layers = [layer_of(seed + n) for n in range(3)]
    found = loss_of(solved(layers, [OPTIONS] * 3, budget))
    for option in OPTIONS:
        assert found <= loss_of(solved(layers, [[option]] * 3, budget)) + 1e-12


def test_layers_may_have_different_formats() -> None:
    precious = blocks_of((0, 1000.0))
    cheap = blocks_of((0, 1.0), (1, 0.9))
    found = solved([precious, cheap], [OPTIONS] * 2, 8.0)
    assert [layer.option.name for layer in found] == ["int8", "int4"]
    assert [layer.widths(2) for layer in found] == [(4, 0), (4, 4)]


def test_with_room_for_all_everything_stays_in_the_first_format() -> None:
    found = solved([layer_of(1)], [OPTIONS], 1e6)
    assert found[0].option.name == "float"
    assert found[0].widths(2) == (12, 12)
    assert loss_of(found) == 0


def test_a_dimension_that_many_tokens_read_must_be_worth_more() -> None:
    found = solved([blocks_of((0, 1.0), (1, 1.0), share=(0.9, 0.1))], [[FLOAT]], 4.0)
    assert found[0].widths(2) == (0, 4)


def test_what_is_to_be_kept_stays_while_anything_does() -> None:
    blocks = blocks_of((0, float("inf")), (1, 1e9))
    found = solved([blocks], [[INT4]], 2.0)
    assert found[0].widths(2) == (4, 0)
    assert loss_of(found) == 1e9


def test_what_is_fixed_decides_where_it_is_all_there_is() -> None:
    shared = [Option("float", 4.0, 100.0, 0.0), Option("int4", 0.5, 12.5, 0.05)]
    assert solved([layer_of(2)], [shared], 13.0)[0].option.name == "int4"
    with pytest.raises(PlanError, match="outside the experts that are pruned"):
        solved([layer_of(2)], [shared], 12.0)


def test_a_higher_price_never_buys_more() -> None:
    sizes = [choose(layer_of(3), OPTIONS, price).size_bytes for price in np.logspace(-4, 4, 60)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
