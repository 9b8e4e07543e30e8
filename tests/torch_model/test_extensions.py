"""Tests of compressed experts, router biases and condensers in torch.

Legend: T tokens, D hidden, E experts, K chosen experts, W width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM

from moe_export.checkpoint import Checkpoint, CheckpointWriter, overwrite
from moe_export.errors import CheckpointError, RecipeError
from moe_export.families import open_checkpoint, spec_of
from moe_export.planning.shares import active_parameters, token_shares, uniform_shares
from moe_export.testing.families import ROWS, FamilyRow
from moe_export.testing.tiny import (
    CONFIG,
    masked_checkpoint,
    pruned_checkpoint,
    tiny_checkpoint,
)
from moe_export.torch_model import LayeredModel, RaggedMoEBlock, StreamedModel, load_torch_model
from moe_export.torch_model.compressed import Vectors

IDS = torch.from_numpy(np.random.default_rng(6).integers(0, 256, (2, 12)))
OURS = {"model_type": "moe_export_qwen2_moe"}
FORMS = ("input", "tied", "three")
CONDENSERS = {"router_bias": True, "condenser_experts": [[1, 4]] * 3}


def compressed(auxiliary: int = 2, form: str = "tied") -> dict[str, Any]:
    return {"compressed_experts": auxiliary, "compressed_form": form}


def tiny(directory: Path, **changes: Any) -> Path:
    return tiny_checkpoint(directory, base=CONFIG | OURS, num_experts_per_tok=4, **changes)


def logits_of(directory: Path, dtype: torch.dtype = torch.float32, top_k: int | None = None) -> Any:
    with torch.no_grad():
        return load_torch_model(directory, dtype, top_k)(IDS).logits


def neutral(directory: Path) -> Path:
    """Checkpoint whose vectors are ones and whose biases are zeros."""
    checkpoint, spec = open_checkpoint(directory)
    added = [name for name, tensor in spec.tensors.items() if tensor.stored is not None]
    overwrite(
        directory,
        {
            name: np.full(checkpoint.tensors[name].shape, "compressed" in name, np.float32)
            for name in added
        },
    )
    assert added
    return directory


def block_of(directory: Path) -> RaggedMoEBlock:
    block = LayeredModel(load_torch_model(directory, torch.float32)).block(1)
    assert block is not None
    return block


def sigmoids(row: FamilyRow) -> bool:
    return spec_of(row.config).family.routing.score == "sigmoid"


@pytest.mark.parametrize("row", [r for r in ROWS if not sigmoids(r)], ids=lambda r: r.model_type)
def test_ones_and_zero_biases_change_no_bit_in_any_family(row: FamilyRow, tmp_path: Path) -> None:
    # Weights are divided by the sum over all K, so that K - n alone has others.
    plain = {"norm_topk_prob": False} if "norm_topk_prob" in row.config else {}
    base = row.config | plain
    ours = base | {"model_type": f"moe_export_{row.model_type}"}
    source = tiny_checkpoint(tmp_path / "source", base=base)
    whole, one = logits_of(source), logits_of(source, top_k=1)
    biased = neutral(tiny_checkpoint(tmp_path / "bias", base=ours, router_bias=True))
    assert torch.equal(logits_of(biased), whole)
    vectors = neutral(tiny_checkpoint(tmp_path / "vectors", base=ours, **compressed(1, "three")))
    if spec_of(base).normalize_top_k:
        assert not torch.equal(logits_of(vectors), one)
    else:
        assert torch.equal(logits_of(vectors), one)


@pytest.mark.parametrize("row", [r for r in ROWS if sigmoids(r)], ids=lambda r: r.model_type)
def test_families_without_a_softmax_are_refused_by_name(row: FamilyRow) -> None:
    with pytest.raises(CheckpointError, match=f"{row.model_type} order a token's experts by a"):
        spec_of(row.config | compressed(1))
    with pytest.raises(CheckpointError, match=f"{row.model_type} have a bias of their own"):
        spec_of(row.config | CONDENSERS)


def expected_output(block: RaggedMoEBlock, x_D: Tensor, form: str, auxiliary: int) -> Tensor:
    """Routed output of one token by the formula, one expert at a time, in float64."""
    tables = {
        role: block.get_parameter(f"compressed.{role}").double()
        for role in {"input": ["input"], "tied": ["input", "hidden"]}.get(
            form, ["input", "hidden", "up"]
        )
    }
    share_E = torch.softmax(block.router(x_D).double(), -1)
    order = share_E.argsort(descending=True)[: block.spec.top_k].tolist()
    main, last = order[:-auxiliary], order[-auxiliary:]
    total = sum(share_E[e] for e in last)
    scale = {role: sum(share_E[e] / total * t[e] for e in last) for role, t in tables.items()}
    x_D = x_D.double()
    y_D = torch.zeros_like(x_D)
    for e in main:
        gate, up, down = (m.weight.double() for m in block.routed[e])
        h_W = torch.nn.functional.silu(gate @ (scale["input"] * x_D))
        h_W = h_W * (up @ (scale.get("up", scale["input"]) * x_D))
        y_D = y_D + share_E[e] * (down @ (scale.get("hidden", 1.0) * h_W))
    return y_D


@pytest.mark.parametrize("form", FORMS)
def test_compressed_experts_follow_the_formula_and_read_their_kept_units(
    form: str, tmp_path: Path
) -> None:
    source = tiny(tmp_path / "source", **compressed(2, form))
    block = block_of(source)
    x_TD = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for x_D, y_D in zip(x_TD, block._routed_output(x_TD), strict=True):
            expected_D = expected_output(block, x_D, form, 2)
            torch.testing.assert_close(y_D.double(), expected_D, rtol=0, atol=1e-5)
    widths = [[24, 0, 1, 7, 16, 24]] * 3
    pruned = pruned_checkpoint(source, tmp_path / "pruned", widths)
    masked = masked_checkpoint(source, tmp_path / "masked", widths)
    torch.testing.assert_close(logits_of(pruned), logits_of(masked), rtol=0, atol=1e-4)
    assert spec_of(Checkpoint(pruned).config).has_units == (form != "input")


def test_auxiliary_weights_that_sum_to_zero_scale_nothing(tmp_path: Path) -> None:
    block = block_of(tiny(tmp_path / "source", **compressed()))
    vectors = block.vectors
    assert vectors is not None
    scales = vectors.scales(torch.tensor([[0.0, 0.0], [0.5, 0.0]]), torch.tensor([[0, 1], [2, 3]]))
    assert scales.input_ND is not None
    assert torch.equal(scales.input_ND[0], torch.ones(64))
    torch.testing.assert_close(scales.input_ND[1], vectors.input_ED[2])


def test_ones_scale_by_exactly_one_whatever_the_weights() -> None:
    weight_TA = torch.rand(200, 3, generator=torch.Generator().manual_seed(4))
    vectors = Vectors(torch.ones(6, 8), torch.ones(6, 4), None)
    scales = vectors.scales(weight_TA, torch.tensor([[0, 3, 5]]).expand(200, 3))
    assert torch.equal(scales.input_ND, torch.ones(200, 8))
    assert torch.equal(scales.hidden_NW, torch.ones(200, 4))
    # The shares themselves do not sum to exactly 1.
    share_TA = weight_TA / weight_TA.sum(-1, keepdim=True)
    assert not torch.equal(share_TA.sum(-1), torch.ones(200))


def test_vectors_and_biases_stay_float32_in_a_model_of_half_precision(tmp_path: Path) -> None:
    for changes in (compressed(1, "three"), CONDENSERS):
        name = "_".join(changes)
        source = neutral(tiny(tmp_path / name, dtype="bfloat16", **changes))
        added = [n for n, t in spec_of(Checkpoint(source).config).tensors.items() if t.stored]
        model = load_torch_model(source, torch.bfloat16)
        assert {model.get_parameter(n).dtype for n in added} == {torch.float32}
        stock = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        assert {stock.get_parameter(n).dtype for n in added} == {torch.float32}
        assert stock.get_parameter("lm_head.weight").dtype == torch.bfloat16
        # A step of 2e-5 from 1 is none in bfloat16.
        overwrite(source, {n: Checkpoint(source).read(n) + np.float32(2e-5) for n in added})
        moved = load_torch_model(source, torch.bfloat16).get_parameter(added[0])
        assert bool((moved != model.get_parameter(added[0])).all())
    narrow = tiny_checkpoint(tmp_path / "narrow", dtype="bfloat16", num_experts_per_tok=3)
    plain = logits_of(narrow, torch.bfloat16)
    ones = neutral(tmp_path / "_".join(compressed()))
    assert torch.equal(logits_of(ones, torch.bfloat16), plain)


def test_narrow_vectors_in_a_file_are_refused(tmp_path: Path) -> None:
    source = tiny(tmp_path / "source", **compressed())
    checkpoint = Checkpoint(source)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    name = "model.layers.0.mlp.compressed.input"
    tensors[name] = tensors[name].astype(np.float16)
    (tmp_path / "narrow").mkdir()
    with CheckpointWriter(tmp_path / "narrow", checkpoint.config, num_shards=1) as writer:
        writer.write_shard(tensors)
    with pytest.raises(CheckpointError, match=r"compressed.input is stored as float16, .* float32"):
        open_checkpoint(tmp_path / "narrow")


def routing_of(directory: Path) -> tuple[RaggedMoEBlock, Tensor, NDArray[np.float64], Any]:
    """Block, routing weights by expert [T, E], softmax of biased logits, and plain logits."""
    block = block_of(directory)
    x_TD = torch.randn(40, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        weight_TK, expert_TK = block.route(x_TD)
        logits_TE = block.router_logits(x_TD).double()
    found_TE = torch.zeros(40, 7).scatter_add(1, expert_TK, weight_TK)
    assert float(found_TE[:, 6].abs().max()) == 0.0
    bias_E = block.get_parameter("gate.bias").double()
    return block, found_TE[:, :6].double(), torch.softmax(logits_TE + bias_E, -1).numpy(), logits_TE


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("budget", ["added", "kept"])
def test_condensers_are_appended_once_with_their_own_share(
    budget: str, normalize: bool, tmp_path: Path
) -> None:
    changes = CONDENSERS | {"condenser_budget": budget, "norm_topk_prob": normalize}
    block, found_TE, share_TE, _ = routing_of(tiny(tmp_path / "source", **changes))
    chosen = 4 if budget == "added" else 2
    twice = 0
    for found_E, share_E in zip(found_TE.numpy(), share_TE, strict=True):
        best = set(np.argsort(-share_E)[:chosen].tolist())
        active = best | {1, 4}
        twice += len(best & {1, 4})
        expected_E = np.array([share_E[e] * (e in active) for e in range(6)])
        if normalize:
            expected_E /= expected_E.sum()
        np.testing.assert_allclose(found_E, expected_E, rtol=0, atol=1e-6)
    assert twice > 0
    assert block.spec.active_experts == chosen + 2


def test_a_condenser_that_counts_twice_adds_its_share_once_more(tmp_path: Path) -> None:
    condensed = block_of(tiny(tmp_path / "condensed", **CONDENSERS))
    biased = block_of(tiny(tmp_path / "biased", router_bias=True))
    x_TD = torch.randn(40, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        once_TD, chosen_TD = condensed._routed_output(x_TD), biased._routed_output(x_TD)
        logits_TE = biased.router_logits(x_TD) + biased.get_parameter("gate.bias")
        share_TE = torch.softmax(logits_TE, -1)
        appended_CTD = torch.stack([share_TE[:, [e]] * output(biased, e, x_TD) for e in (1, 4)])
        is_chosen_CT = (biased.route(x_TD)[1][None] == torch.tensor([[[1]], [[4]]])).any(-1)
        twice_TD = chosen_TD + appended_CTD.sum(0)
        more_TD = (appended_CTD * is_chosen_CT[:, :, None]).sum(0)
    assert 0 < int(is_chosen_CT.sum()) < is_chosen_CT.numel()
    torch.testing.assert_close(twice_TD - once_TD, more_TD, rtol=0, atol=1e-6)
    assert float(more_TD.abs().max()) > 1e-3


def output(block: RaggedMoEBlock, expert: int, x_TD: Tensor) -> Tensor:
    gate, up, down = block.routed[expert]
    found: Tensor = down(torch.nn.functional.silu(gate(x_TD)) * up(x_TD))
    return found


def test_a_bias_is_a_router_weight_of_a_constant_input(tmp_path: Path) -> None:
    block = block_of(tiny(tmp_path / "source", **CONDENSERS))
    x_TD = torch.randn(40, 64, generator=torch.Generator().manual_seed(2))
    x_TD[:, 9] = 1.0
    with torch.no_grad():
        weight_TK, expert_TK = block.route(x_TD)
        bias_E = block.get_parameter("gate.bias")
        block.router.weight[:, 9] += bias_E
        bias_E.zero_()
        folded_TK, folded_expert_TK = block.route(x_TD)
        block.router.weight[:, 9] = 0.0
        without_TK = block.route(x_TD)[1]
    assert torch.equal(folded_expert_TK, expert_TK)
    torch.testing.assert_close(folded_TK, weight_TK, rtol=0, atol=1e-6)
    assert not torch.equal(without_TK, expert_TK)


def test_a_bias_for_the_choice_alone_leaves_the_weights(tmp_path: Path) -> None:
    changes = CONDENSERS | {"router_bias_in_weights": False}
    _, found_TE, choice_TE, logits_TE = routing_of(tiny(tmp_path / "source", **changes))
    plain_TE = torch.softmax(logits_TE, -1).numpy()
    for found_E, choice_E, plain_E in zip(found_TE.numpy(), choice_TE, plain_TE, strict=True):
        active = {*np.argsort(-choice_E)[:4].tolist(), 1, 4}
        expected_E = [plain_E[e] * (e in active) for e in range(6)]
        np.testing.assert_allclose(found_E, expected_E, rtol=0, atol=1e-6)


def test_a_streamed_model_computes_the_same(tmp_path: Path) -> None:
    for changes in (compressed(), CONDENSERS):
        source = tiny(tmp_path / "_".join(changes), **changes)
        streamed = StreamedModel(source, torch.float32)
        *_, (state,) = streamed.states([IDS])
        with streamed.head() as (norm, head), torch.no_grad():
            logits = head(norm(state))
        torch.testing.assert_close(logits, logits_of(source), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (compressed(4), r"compressed_experts is 4, expected 1 to 3"),
        (compressed(0), r"compressed_experts is 0, expected 1 to 3"),
        (compressed(True), r"compressed_experts is True"),
        (compressed(form="four"), r"compressed_form is 'four', expected 'input' or"),
        ({"compressed_form": "tied"}, r"compressed_form has no meaning without compressed_expe"),
        (compressed() | CONDENSERS, r"exclude each other"),
        ({"router_bias": False}, r"router_bias is False, expected True"),
        ({"router_bias": True, "router_bias_in_weights": 1}, r"in_weights is 1, expected True or"),
        ({"condenser_budget": "kept"}, r"condenser_budget has no meaning without router_bias"),
        (CONDENSERS | {"condenser_budget": "own"}, r"condenser_budget is 'own', expected 'added'"),
        (CONDENSERS | {"condenser_experts": [[1, 4]] * 2}, r"for each of the 3 layers"),
        (CONDENSERS | {"condenser_experts": [[4, 1]] * 3}, r"ascending numbers below 6"),
        (CONDENSERS | {"condenser_experts": [[1, 6]] * 3}, r"ascending numbers below 6"),
        (CONDENSERS | {"condenser_experts": [[1], [1], [1, 2]]}, r"expected equally many"),
        (
            {"router_bias": True, "condenser_budget": "kept"}
            | {"condenser_experts": [[0, 1, 2, 3]] * 3},
            r"leaves none to choose of the 4 per token of this qwen2_moe; expected 3 at most",
        ),
    ],
)
def test_values_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        spec_of(CONFIG | {"num_experts_per_tok": 4} | changes)


def test_a_bias_for_the_choice_alone_is_refused_with_a_sparse_mixer() -> None:
    config = next(row.config for row in ROWS if row.model_type == "phimoe")
    with pytest.raises(CheckpointError, match="come from the logits that chose the experts"):
        spec_of(config | CONDENSERS | {"router_bias_in_weights": False})


def test_stock_loaders_and_stock_names_are_refused(tmp_path: Path) -> None:
    source = tiny(tmp_path / "source", **compressed())
    model = AutoModelForCausalLM.from_pretrained(source)  # moe_export registers its own types
    torch.testing.assert_close(model.eval()(IDS).logits, logits_of(source), rtol=0, atol=1e-5)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "qwen2_moe"}))
    with pytest.raises(CheckpointError, match="stock loaders would drop its tensors"):
        open_checkpoint(source)
    with pytest.raises(RecipeError, match=r"plan.top_k is 3, .* tuned with compressed experts"):
        open_checkpoint(tiny(tmp_path / "again", **compressed()), 3)


def test_shares_and_active_parameters_know_condensers_and_vectors() -> None:
    config = CONFIG | {"num_experts_per_tok": 4}
    plain, half = spec_of(config | {"num_experts_per_tok": 2}), spec_of(config | compressed())
    added, kept = (
        spec_of(config | CONDENSERS | {"condenser_budget": budget}) for budget in ("added", "kept")
    )
    assert [share_E.sum() for share_E in uniform_shares(added)] == [6.0] * 3
    assert uniform_shares(kept)[0].tolist() == [0.5, 1.0, 0.5, 0.5, 1.0, 0.5]
    # Every token reached experts 1 and 4; 30 of 100 had chosen expert 4 themselves.
    tokens_E = np.array([50, 100, 90, 60, 100, 70])
    share_E = token_shares([tokens_E] * 3, added)[0]
    np.testing.assert_allclose(share_E, tokens_E / 100)
    of_plain, of_half = (active_parameters(s, uniform_shares(s)) for s in (plain, half))
    vectors = 3 * 6 * (64 + 24)
    assert of_plain is not None
    assert of_half == pytest.approx(of_plain + vectors * 2 / 6)
