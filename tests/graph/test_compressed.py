"""Compressed experts in exported models: equal to torch in every executor, pruned and quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moe_export.checkpoint import overwrite
from moe_export.families import open_checkpoint, spec_of
from moe_export.graph import predicted_bytes
from moe_export.op.spec import Layout
from moe_export.recipe import QuantizeSettings
from moe_export.stages.job import Job
from moe_export.stages.quantize import run as quantize
from moe_export.testing.families import ROWS, FamilyRow
from moe_export.testing.tiny import CONFIG, pruned_checkpoint, tiny_checkpoint
from moe_export.torch_model import load_torch_model
from tests.helpers.decoding import Decoder, exported

LIMIT = 1e-4
"""Largest absolute error of float32 logits of up to about 15, as the project promises."""

WIDTHS = [[24, 0, 1, 7, 16, 24], [3, 24, 0, 0, 11, 1], [24] * 6]
FORMS = ("input", "tied", "three")
IDS = np.random.default_rng(5).integers(0, 256, (2, 12))


def compressed(form: str, auxiliary: int = 2) -> dict[str, Any]:
    return {"compressed_experts": auxiliary, "compressed_form": form}


def tiny(directory: Path, form: str, **changes: Any) -> Path:
    base = CONFIG | {"model_type": "moe_export_qwen2_moe"}
    return tiny_checkpoint(
        directory, base=base, num_experts_per_tok=4, **compressed(form), **changes
    )


def expected_of(directory: Path, top_k: int | None = None) -> NDArray[Any]:
    torch.set_num_threads(1)
    with torch.no_grad():
        logits = load_torch_model(directory, torch.float32, top_k)(torch.from_numpy(IDS)).logits
    result: NDArray[Any] = logits.numpy()
    return result


def logits_of(decoder: Decoder) -> NDArray[Any]:
    """Logits of a batch of two: of a prompt, and of a step after it."""
    return np.concatenate([decoder.start(IDS[:, :11]), decoder.go_on(IDS[:, 11:])], axis=1)


@pytest.mark.parametrize(
    "row",
    [r for r in ROWS if spec_of(r.config).family.routing.score != "sigmoid"],
    ids=lambda row: row.model_type,
)
def test_every_family_equals_torch_in_every_executor(row: FamilyRow, tmp_path: Path) -> None:
    base = row.config | {"model_type": f"moe_export_{row.model_type}"}
    source = tiny_checkpoint(tmp_path / "source", base=base, **compressed("tied", 1))
    expected = expected_of(source)
    portable = exported(source, tmp_path / "portable")
    for native in (False, True):
        actual = Decoder(portable, native=native).start(IDS)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=LIMIT)


@pytest.mark.parametrize("widths", [None, WIDTHS], ids=["whole", "pruned"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_torch_in_every_executor(
    form: str, widths: list[list[int]] | None, tmp_path: Path
) -> None:
    checkpoint = tiny(tmp_path / "source", form)
    if widths is not None:
        checkpoint = pruned_checkpoint(checkpoint, tmp_path / "pruned", widths)
        scatter_units(checkpoint)
    expected = expected_of(checkpoint)
    portable = exported(checkpoint, tmp_path / "portable")
    decoders = [Decoder(portable)]
    packed = exported(checkpoint, tmp_path / "packed", layout="packed")
    decoders += [Decoder(model, native=True) for model in (portable, packed)]
    for decoder in decoders:
        np.testing.assert_allclose(logits_of(decoder), expected, rtol=0, atol=LIMIT)


def scatter_units(directory: Path) -> None:
    """Gives the kept rows of pruned experts other positions than the first ones."""
    checkpoint, spec = open_checkpoint(directory)
    random = np.random.default_rng(3)
    names = [name for name, tensor in spec.tensors.items() if tensor.role == "compressed_units"]
    overwrite(
        directory,
        {
            name: np.concatenate(
                [np.sort(random.permutation(24)[:w]) for w in spec.widths[layer]]
            ).astype(checkpoint.read(name).dtype)
            for layer, name in enumerate(names)
        },
    )


def test_vectors_of_ones_are_the_model_with_fewer_experts(tmp_path: Path) -> None:
    source = tiny(tmp_path / "source", "tied")
    checkpoint, spec = open_checkpoint(source)
    roles = {name: tensor.role for name, tensor in spec.tensors.items()}
    ones = [name for name, role in roles.items() if role.startswith("compressed")]
    trained = expected_of(source)
    overwrite(source, {name: np.ones_like(checkpoint.read(name)) for name in ones})
    plain = tiny_checkpoint(tmp_path / "plain", num_experts_per_tok=4)
    expected = expected_of(plain, top_k=2)
    assert np.abs(trained - expected).max() > 100 * LIMIT
    portable = exported(source, tmp_path / "portable")
    packed = exported(source, tmp_path / "packed", layout="packed")
    for folder, native in ((portable, False), (portable, True), (packed, True)):
        actual = Decoder(folder, native=native).start(IDS)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=LIMIT)


def test_auxiliary_weights_that_underflow_to_zero_scale_nothing(tmp_path: Path) -> None:
    source = tiny(tmp_path / "source", "tied")
    checkpoint, spec = open_checkpoint(source)
    routers = [name for name, tensor in spec.tensors.items() if tensor.role == "router"]
    steep = {name: 1e4 * checkpoint.read(name) for name in routers}
    overwrite(source, steep)
    plain = tiny_checkpoint(tmp_path / "plain", num_experts_per_tok=4)
    overwrite(plain, steep)
    expected = expected_of(plain, top_k=2)
    np.testing.assert_allclose(expected_of(source), expected, rtol=0, atol=LIMIT)
    portable = exported(source, tmp_path / "portable")
    for native in (False, True):
        actual = Decoder(portable, native=native).start(IDS)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=LIMIT)


@pytest.mark.parametrize("experts", ["int4", "int8"])
def test_quantized_experts_give_the_same_bits_in_both_layouts_and_equal_torch(
    experts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny(tmp_path / "source", "tied")
    pruned = pruned_checkpoint(source, tmp_path / "pruned", WIDTHS)
    scatter_units(pruned)
    out = tmp_path / "quantized"
    out.mkdir()
    settings = QuantizeSettings(experts=experts)
    quantize(Job(settings=settings, model=pruned, folders={"prune": pruned}, out=out))
    portable = exported(out, tmp_path / "portable")
    packed = exported(out, tmp_path / "packed", layout="packed", linear="standard")
    native = logits_of(Decoder(portable, native=True))
    np.testing.assert_array_equal(logits_of(Decoder(packed, native=True)), native)
    exact = expected_of(out)
    # Activations are rounded to int8, here and by ONNX Runtime, which torch does not do.
    for rounded in (native, logits_of(Decoder(portable))):
        assert np.abs(rounded - exact).mean() < 0.05 * float(np.abs(exact).mean())
    monkeypatch.setenv("MOE_EXPORT_ACTIVATIONS", "exact")
    actual = logits_of(Decoder(portable, native=True))
    np.testing.assert_allclose(actual, exact, rtol=0, atol=LIMIT)


@pytest.mark.parametrize("layout", ["portable", "packed"])
def test_float16_is_close_to_float32_and_takes_the_predicted_bytes(
    layout: Layout, tmp_path: Path
) -> None:
    source = tiny(tmp_path / "source", "tied", seed=1)
    pruned = pruned_checkpoint(source, tmp_path / "pruned", WIDTHS)
    narrow = exported(pruned, tmp_path / "narrow", "float16", layout)
    _, spec = open_checkpoint(pruned)
    predicted = predicted_bytes(spec, "float16", layout)
    assert predicted.total_bytes == (narrow / "model.onnx.data").stat().st_size
    # Tables in 16 bits, and positions in 32.
    vectors = 6 * (64 + 24) * 2
    assert predicted.by_class["router"] == sum(6 * 64 * 2 + vectors + 4 * sum(w) for w in WIDTHS)
    expected = expected_of(pruned)
    error = np.abs(logits_of(Decoder(narrow, native=True)).astype(np.float32) - expected)
    # As in `test_parity`: about 40 roundings in turn, each of at most 2 ** -11.
    assert error.max() < 40 * 2**-11 * np.abs(expected).max()


def test_a_token_reads_the_vectors_of_its_auxiliary_experts_alone(tmp_path: Path) -> None:
    _, spec = open_checkpoint(tiny(tmp_path / "source", "tied"))
    _, fewer = open_checkpoint(tiny_checkpoint(tmp_path / "plain", num_experts_per_tok=2))
    shares = [np.full(6, 2 / 6)] * 3
    active, plain = (
        predicted_bytes(each, "float32").active_bytes(each, shares) for each in (spec, fewer)
    )
    assert active - plain == 3 * 2 * (64 + 24) * 4
