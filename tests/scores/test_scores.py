"""Tests of the scores against slow and plain computations of their formulas."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.importance import Importance
from moe_export.errors import CalibrationError, MoeExportError, RecipeError
from moe_export.families.axis import Axis
from moe_export.passes.loss import loss_gradients
from moe_export.recipe import Score as ScoreName
from moe_export.scores import SCORES, scores_named
from moe_export.scoring.collect import collect_importance
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from moe_export.torch_model import LayeredModel, RaggedMoEBlock, load_torch_model
from tests.helpers.torch_models import UNEQUAL

LENGTHS = (5, 2, 12, 9, 3, 12)

LOSS_OF = {
    "fisher": "cross_entropy",
    "fisher_margin": "margin",
    "rounding_margin": "margin",
    "absgrad": "cross_entropy",
    "fisher_weighted": "cross_entropy",
    "fisher_margin_weighted": "margin",
    "rounding_margin_weighted": "margin",
}


class Norm64(nn.Module):
    """RMS norm in float64; transformers computes it in float32."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.weight * x_TD * torch.rsqrt(x_TD.square().mean(-1, True) + self.epsilon)


def in_float64(model: Any) -> Any:
    """Model entirely in float64, so that larger differences are mistakes, not rounding."""
    model.double()
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Norm64(module))
    return model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("scores") / "stock")


@pytest.fixture
def model(directory: Path) -> Any:
    return in_float64(load_torch_model(directory, torch.float32))


def calibration_of(lengths: Sequence[int]) -> Calibration:
    generator = np.random.default_rng(5)
    zeros_S = np.zeros(len(lengths), np.int32)
    return Calibration(
        generator.integers(0, 256, sum(lengths)).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        zeros_S,
        zeros_S,
    )


def collect(
    model: Any, names: Sequence[str], lengths: Sequence[int] = LENGTHS, batch_tokens: int = 30
) -> Importance:
    with tempfile.TemporaryDirectory() as folder:
        actual = collect_importance(
            LayeredModel(model),
            axis_of(model),
            calibration_of(lengths),
            scores_named(names),
            batch_tokens,
            Path(folder),
        )
    assert actual is not None
    return actual


def axis_of(model: Any, *, has_shared: bool = False) -> Axis:
    return Axis(blocks_of(model)[0].spec, has_shared)


def blocks_of(model: Any) -> list[RaggedMoEBlock]:
    return [module for module in model.modules() if isinstance(module, RaggedMoEBlock)]


def mean_loss(model: Any, tokens: NDArray[np.int32], loss: str) -> Tensor:
    """Mean loss of one sequence by its definition, from its logits alone."""
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    logits_TV, gold_T = model(ids, use_cache=False).logits[0, :-1], ids[0, 1:]
    if loss == "cross_entropy":
        return F.cross_entropy(logits_TV, gold_T)
    chosen_T = logits_TV.gather(1, gold_T[:, None])[:, 0]
    others_TV = logits_TV.scatter(1, gold_T[:, None], -math.inf)
    return (others_TV.logsumexp(1) - chosen_T).mean()


def with_weight_gradients(model: Any, tokens: NDArray[np.int32], loss: str) -> None:
    model.requires_grad_(True).zero_grad()
    mean_loss(model, tokens, loss).backward()


def rows(block: RaggedMoEBlock, of_expert: Callable[[Any], Tensor]) -> NDArray[np.float64]:
    return torch.cat([of_expert(expert) for expert in block.routed]).double().numpy()


def gradient(matrix: Any) -> Tensor:
    return torch.zeros_like(matrix.weight) if matrix.weight.grad is None else matrix.weight.grad


def through_down(expert: Any) -> Tensor:
    return (expert.down.weight.detach() * gradient(expert.down)).sum(0)


def through_up(expert: Any) -> Tensor:
    return (expert.up.weight.detach() * gradient(expert.up)).sum(1)


def absolute(expert: Any) -> Tensor:
    total = gradient(expert.gate).abs().sum(1) + gradient(expert.up).abs().sum(1)
    return (total + gradient(expert.down).abs().sum(0)) / (3 * expert.up.weight.shape[1])


def rounded(expert: Any) -> Tensor:
    """Cost per row of noise of the weights' size: squared gradients times squared weights."""
    total = torch.zeros(len(expert.up.weight), dtype=torch.float64)
    for matrix, axis in ((expert.gate, 1), (expert.up, 1), (expert.down, 0)):
        weight = matrix.weight.detach()
        total += gradient(matrix).square().sum(axis) * weight.square().sum(axis)
    return total / expert.up.weight.shape[1]


OF_SEQUENCE = {
    "absgrad": lambda block: rows(block, absolute),
    "rounding_margin": lambda block: rows(block, rounded),
    "fisher": lambda block: rows(block, through_down) ** 2,
    "fisher_margin": lambda block: rows(block, through_down) ** 2,
}
for weighted in ("rounding_margin", "fisher", "fisher_margin"):
    OF_SEQUENCE[f"{weighted}_weighted"] = OF_SEQUENCE[weighted]


def share_of(name: str, tokens: NDArray[np.int32]) -> float:
    """Share of a sequence in a score: by its tokens that have a loss, or that of every other."""
    if name.endswith("_weighted"):
        return (len(tokens) - 1) / (sum(LENGTHS) - len(LENGTHS))
    return 1 / len(LENGTHS)


@pytest.mark.parametrize("name", LOSS_OF)
def test_gradient_scores_equal_one_backward_pass_per_sequence(model: Any, name: str) -> None:
    actual = collect(model, [name, "magnitude"]).scores[name]
    expected = [np.zeros(len(layer_R)) for layer_R in actual]
    for tokens in calibration_of(LENGTHS).sequences():
        with_weight_gradients(model, tokens, LOSS_OF[name])
        for total_R, block in zip(expected, blocks_of(model), strict=True):
            total_R += share_of(name, tokens) * OF_SEQUENCE[name](block)
    # absgrad takes its gradients in float32; the weights 1/n of the tokens always are.
    for actual_R, expected_R in zip(actual, expected, strict=True):
        known = np.isfinite(actual_R)
        assert known.all()
        np.testing.assert_allclose(actual_R, expected_R, rtol=2e-6, atol=1e-9)


def test_mask_gradient_is_the_same_through_down_and_through_up(model: Any) -> None:
    tokens = calibration_of([14]).sequences()[0]
    for loss in ("cross_entropy", "margin"):
        with_weight_gradients(model, tokens, loss)
        for block in blocks_of(model):
            down_R, up_R = rows(block, through_down), rows(block, through_up)
            assert np.abs(down_R).max() > 1e-4
            np.testing.assert_allclose(down_R, up_R, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["fisher", "fisher_margin"])
def test_fisher_equals_finite_differences_of_a_mask(model: Any, name: str) -> None:
    lengths = (11, 6)
    actual = collect(model, [name], lengths).scores[name]
    step = 1e-4  # the error of a central difference is of order step ** 2, rounding 1e-16 / step
    for layer, block in enumerate(blocks_of(model)):
        reached = np.flatnonzero(np.isfinite(actual[layer]))
        for row in reached[:: len(reached) // 4]:
            column = block.routed[row // 24].down.weight[:, row % 24]
            kept, squares = column.clone(), []
            for tokens in calibration_of(lengths).sequences():
                values = []
                for mask in (1 + step, 1 - step):
                    column.copy_(kept * mask)
                    values.append(float(mean_loss(model, tokens, LOSS_OF[name])))
                squares.append(((values[0] - values[1]) / (2 * step)) ** 2)
            column.copy_(kept)
            assert actual[layer][row] == pytest.approx(np.mean(squares), rel=1e-5, abs=1e-14)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_loss_gradients_equal_autograd(loss: str) -> None:
    generator = torch.Generator().manual_seed(2)
    head = nn.Linear(8, 30, bias=False).double().requires_grad_(False)
    hidden_TD = torch.randn(2500, 8, generator=generator).double().requires_grad_()
    gold_T = torch.randint(0, 30, (2500,), generator=generator)
    weight_T = torch.rand(2500, generator=generator).double()
    logits_TV = head(hidden_TD)
    chosen_T = logits_TV.gather(1, gold_T[:, None])[:, 0]
    if loss == "margin":
        logits_TV = logits_TV.scatter(1, gold_T[:, None], -math.inf)
    (weight_T * (logits_TV.logsumexp(1) - chosen_T)).sum().backward()
    actual = loss_gradients(hidden_TD.detach(), head, gold_T, weight_T, [loss])[loss]
    torch.testing.assert_close(actual, hidden_TD.grad, rtol=1e-12, atol=1e-14)


def test_margin_gradient_does_not_vanish_where_the_model_is_sure() -> None:
    head = nn.Linear(4, 4, bias=False).requires_grad_(False)
    head.weight.copy_(torch.eye(4))
    sure = torch.tensor([[60.0, 1.0, 0.0, 0.0]])
    gold, weight = torch.tensor([0]), torch.ones(1)
    actual = loss_gradients(sure, head, gold, weight, ["cross_entropy", "margin"])
    assert float(actual["cross_entropy"].abs().max()) < 1e-20
    e = math.e
    expected = torch.tensor([[-1, e / (e + 2), 1 / (e + 2), 1 / (e + 2)]])
    torch.testing.assert_close(actual["margin"], expected)


def test_activation_scores_equal_their_formulas_token_by_token(model: Any) -> None:
    names = ["activation", "router_weighted_activation", "router_frequency", "reap"]
    actual = collect(model, names)
    sequences = calibration_of(LENGTHS).sequences()
    inputs: dict[int, list[Tensor]] = {block.layer: [] for block in blocks_of(model)}
    for block in blocks_of(model):
        block.register_forward_pre_hook(
            lambda module, args: inputs[module.layer].extend(args[0].reshape(-1, 64))
        )
    with torch.no_grad():
        for tokens in sequences:
            model(torch.from_numpy(tokens.astype(np.int64))[None], use_cache=False)
    for block in blocks_of(model):
        expected = {name: np.zeros((6, 24)) for name in names}
        for x_D in inputs[block.layer]:
            p_E = torch.softmax(block.gate.weight @ x_D, 0)
            for number in p_E.topk(2).indices.tolist():
                expert, p = block.routed[number], float(p_E[number])
                h_W = F.silu(expert.gate.weight @ x_D) * (expert.up.weight @ x_D)
                length_W = expert.down.weight.norm(dim=0)
                output = float((expert.down.weight @ h_W).norm())
                expected["activation"][number] += h_W.abs().numpy() / sum(LENGTHS)
                weighted_W = (p * h_W * length_W).square().numpy()
                expected["router_weighted_activation"][number] += weighted_W / sum(LENGTHS)
                expected["router_frequency"][number] += 1
                expected["reap"][number] += p * output
        count_E = expected["router_frequency"][:, :1]
        expected["reap"] /= count_E
        np.testing.assert_array_equal(actual.tokens_per_expert[block.layer], count_E[:, 0])
        assert count_E.sum() == 2 * sum(LENGTHS)
        for name in names:
            np.testing.assert_allclose(
                actual.scores[name][block.layer], expected[name].ravel(), rtol=1e-9, err_msg=name
            )


def test_scores_of_weights_need_no_data(model: Any) -> None:
    first = collect(model, ["magnitude", "random"]).scores
    second = collect(model, ["random", "magnitude"], lengths=(3,)).scores
    for layer, block in enumerate(blocks_of(model)):
        expert = block.routed[2]
        expected = sum(
            float(part.square().sum())
            for part in (expert.gate.weight[7], expert.up.weight[7], expert.down.weight[:, 7])
        )
        assert first["magnitude"][layer][2 * 24 + 7] == pytest.approx(expected, rel=1e-12)
        for name in ("magnitude", "random"):
            np.testing.assert_array_equal(first[name][layer], second[name][layer])
    assert len(np.unique(np.concatenate(first["random"]))) == 3 * 6 * 24


def test_results_do_not_depend_on_batching(model: Any, directory: Path) -> None:
    names = list(SCORES)
    alone, together = collect(model, names, batch_tokens=1), collect(model, names, batch_tokens=999)
    rough = collect(load_torch_model(directory, torch.float32), names, batch_tokens=30)
    for name in names:
        for layer in range(3):
            expected_R = alone.scores[name][layer]
            np.testing.assert_allclose(together.scores[name][layer], expected_R, rtol=2e-6)
            order = np.argsort(expected_R, kind="stable")
            np.testing.assert_array_equal(
                np.argsort(together.scores[name][layer], kind="stable"), order
            )
            scale = np.abs(expected_R).max()
            assert np.abs(rough.scores[name][layer] - expected_R).max() < 1e-5 * scale


def test_fisher_ignores_a_rescaling_that_leaves_the_function_as_it_is(model: Any) -> None:
    names = ["fisher", "fisher_margin", "router_weighted_activation", "activation", "magnitude"]
    before = collect(model, names).scores
    generator = torch.Generator().manual_seed(4)
    for block in blocks_of(model):
        for expert in block.routed:
            factor_W = torch.exp(torch.randn(24, generator=generator).double())
            expert.up.weight.mul_(factor_W[:, None])
            expert.down.weight.div_(factor_W)
    after = collect(model, names).scores
    for layer in range(3):
        for name in names[:3]:
            np.testing.assert_allclose(after[name][layer], before[name][layer], rtol=1e-9)
        for name in names[3:]:
            order = np.argsort(before[name][layer])
            assert (np.argsort(after[name][layer]) != order).any()


def test_what_no_token_reached_is_unknown_to_scores_of_data(model: Any) -> None:
    actual = collect(model, list(SCORES), lengths=(2,))
    for layer, tokens_E in enumerate(actual.tokens_per_expert):
        unreached_R = np.repeat(tokens_E == 0, 24)
        assert unreached_R.any()
        for name in SCORES:
            is_known = name in ("magnitude", "random", "router_frequency")
            expected_R = np.zeros_like(unreached_R) if is_known else unreached_R
            np.testing.assert_array_equal(np.isinf(actual.scores[name][layer]), expected_R)
        assert (actual.scores["router_frequency"][layer][unreached_R] == 0).all()


def test_a_pruned_model_can_be_scored(directory: Path, tmp_path: Path) -> None:
    pruned = load_torch_model(pruned_checkpoint(directory, tmp_path, UNEQUAL), torch.float32)
    actual = collect(pruned, list(SCORES))
    for widths, *layers in zip(UNEQUAL, *actual.scores.values(), strict=True):
        assert {layer_R.shape for layer_R in layers} == {(sum(widths),)}


def test_bfloat16_scores_are_near_those_of_float32(directory: Path) -> None:
    exact = collect(load_torch_model(directory, torch.float32), ["fisher_margin"])
    rough = collect(load_torch_model(directory, torch.bfloat16), ["fisher_margin"])
    for exact_R, rough_R in zip(
        exact.scores["fisher_margin"], rough.scores["fisher_margin"], strict=True
    ):
        assert np.corrcoef(exact_R, rough_R)[0, 1] > 0.9


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (calibration_of([3, 1]), "calibration sequence 1 has 1 tokens, expected 2 to 128"),
        (calibration_of([129]), "calibration sequence 0 has 129 tokens, expected 2 to 128"),
        (calibration_of([]), "calibration sequence 0 has 0 tokens"),
        (
            Calibration(
                np.array([1, 264], np.int32), np.array([0, 2]), *[np.zeros(1, np.int32)] * 2
            ),
            "calibration sequence 0 holds a token outside 0 to 263",
        ),
    ],
)
def test_unsuitable_sequences_are_refused(
    model: Any, calibration: Calibration, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match=message):
        collect_importance(
            LayeredModel(model),
            axis_of(model),
            calibration,
            scores_named(["fisher"]),
            100,
            tmp_path,
        )


def test_a_score_that_is_not_a_number_is_refused_and_torch_left_as_it_was(model: Any) -> None:
    blocks_of(model)[1].routed[0].down.weight[0, 3] = math.inf
    with pytest.raises(MoeExportError, match="layer 1: score magnitude has 1 values"):
        collect(model, ["magnitude"])
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_unknown_score_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"'fisher_margn' is unknown.*nearest is 'fisher_margin'"):
        scores_named(["fisher", "fisher_margn"])


def test_recipe_and_registry_know_the_same_scores() -> None:
    known = TypeAdapter(ScoreName)
    assert known.json_schema()["enum"] == list(SCORES)
    assert [known.validate_python(name) for name in SCORES] == list(SCORES)
    with pytest.raises(ValidationError):
        known.validate_python("taylor")


def test_every_score_says_what_it_is() -> None:
    for score in SCORES.values():
        assert len(score.formula.split()) > 5
        assert score.unit
        assert score.source
