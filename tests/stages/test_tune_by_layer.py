"""Tests of tuning layer by layer: memory, resuming, what is trained, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from torch import nn

from moe_export.artifacts.tuning import Tuning
from moe_export.checkpoint import Checkpoint, overwrite, read_config
from moe_export.errors import CheckpointError, GateError, RecipeError, ResourceError
from moe_export.families import open_checkpoint, spec_of
from moe_export.recipe import TuneSettings
from moe_export.stages import tune
from moe_export.stages.job import Job
from moe_export.testing.synthetic_checkpoint import config_of
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from moe_export.torch_model import StreamedModel
from moe_export.tuning.methods import check_method
from moe_export.tuning.needs import require_memory
from tests.helpers.small_tuning import tune_settings

Settings = dict[str, Any]

VECTORS: Settings = {
    "method": "compressed_experts",
    "only": "vectors_and_routers",
    "compressed": {"form": "three", "vector_rate": 5.0},
}
ROUTERS: Settings = {"method": "full", "only": "routers", "top_k": 2}


def settings(changes: Settings, **others: Any) -> TuneSettings:
    of = {"objective": "distill", "learning_rate": 1e-3} | changes | others
    return tune_settings(**of)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "model"
    return tiny_checkpoint(folder, dtype="bfloat16", num_experts_per_tok=4)


def job_of(model: Path, out: Path, of: TuneSettings, **folders: Path) -> Job[TuneSettings]:
    out.mkdir()
    out.with_name(f"{out.name}.partial").mkdir(exist_ok=True)
    return Job(of, model, folders, out)


def tuned(model: Path, out: Path, of: TuneSettings, **folders: Path) -> Tuning:
    tune.run(job_of(model, out, of, **folders))
    return Tuning.load(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def roles(model: Path, names: tuple[str, ...]) -> set[str]:
    spec = open_checkpoint(model)[1]
    return {spec.tensors[name].role for name in names}


def test_vectors_and_routers_come_nearer_to_the_source(model: Path, tmp_path: Path) -> None:
    found = tuned(model, tmp_path / "tune", settings(VECTORS, documents=300, steps=40))
    assert 0 < found.after < 0.99 * found.before
    assert found.layers is not None
    assert [layer.layer for layer in found.layers] == [0, 1, 2]
    assert all(0 < layer.after < 0.98 * layer.before for layer in found.layers)
    expected = {"router", "compressed_input", "compressed_hidden", "compressed_up"}
    assert roles(tmp_path / "tune", found.changed) == expected
    assert found.trained_parameters == 3 * 6 * (64 + 64 + 24 + 64)
    checkpoint, spec = open_checkpoint(tmp_path / "tune")
    assert spec.active_experts == 2
    assert checkpoint.tensors[spec.name("router", 0)].dtype.name == "bfloat16"
    assert checkpoint.tensors[spec.name("compressed_input", 0)].dtype.name == "float32"


def noisy(model: Path, out: Path) -> Path:
    """The model with all its experts' dimensions and with noise on its routers."""
    _, spec = open_checkpoint(model)
    pruned_checkpoint(model, out, [list(widths) for widths in spec.widths])
    random = np.random.default_rng(1)
    checkpoint = Checkpoint(out)
    routers = {
        name: checkpoint.read(name) for name, t in spec.tensors.items() if t.role == "router"
    }
    overwrite(
        out,
        {
            name: (w + w.std() * random.standard_normal(w.shape)).astype(w.dtype)
            for name, w in routers.items()
        },
    )
    return out


def test_routers_of_a_pruned_model_are_tuned_and_judged_as_in_memory(
    model: Path, tmp_path: Path
) -> None:
    pruned = noisy(model, tmp_path / "prune")
    of = settings(
        {"method": "full", "only": "routers", "after": "prune"}, learning_rate=0.05, steps=20
    )
    found = tuned(model, tmp_path / "tune", of, prune=pruned)
    assert 0 < found.after < 0.9 * found.before
    assert roles(tmp_path / "tune", found.changed) == {"router"}
    whole = of.model_copy(update={"only": None, "steps": 1, "learning_rate": 1e-12})
    with pytest.raises(GateError) as stopped:
        tuned(model, tmp_path / "again", whole, prune=tmp_path / "tune")
    assert f"was {found.after:.4f} before" in str(stopped.value)


def test_a_killed_tuning_goes_on_to_the_same_bytes(model: Path, tmp_path: Path) -> None:
    def killed(_done: int, _of: int, what: str) -> None:
        if what == "layer 1, step 4":
            raise KeyboardInterrupt

    tuned(model, tmp_path / "first", settings(VECTORS))
    job = job_of(model, tmp_path / "second", settings(VECTORS))
    with pytest.raises(KeyboardInterrupt):
        tune.run(replace(job, progress=killed))
    seen: list[str] = []
    tune.run(replace(job, progress=lambda _done, _of, what: seen.append(what)))
    assert seen[0] == "layer 1, step 0"
    assert contents(tmp_path / "second") == contents(tmp_path / "first")


def test_one_layer_is_in_memory_at_a_time(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[nn.Module] = []
    held: list[int] = []
    loaded = StreamedModel._loaded

    @contextmanager
    def counted(self: StreamedModel, names: dict[str, str]) -> Iterator[None]:
        models.append(self.model)
        with loaded(self, names):
            parameters = {p for each in models for p in each.parameters() if not p.is_meta}
            held.append(sum(p.numel() for p in parameters))
            yield

    monkeypatch.setattr(StreamedModel, "_loaded", counted)
    tuned(model, tmp_path / "tune", settings(VECTORS, steps=2))
    _, spec = open_checkpoint(tmp_path / "tune")
    layers = [sum(t.elements for t in spec.tensors.values() if t.layer == n) for n in range(3)]
    assert max(held) == max(layers)
    assert len(set(map(id, models))) == 2
    assert max(held) < spec.parameters / 2
    assert not any(isinstance(m, nn.Module) and _has_values(m) for m in models)


def _has_values(model: nn.Module) -> bool:
    return any(not p.is_meta for p in model.parameters())


def test_training_that_does_not_help_a_layer_is_undone(model: Path, tmp_path: Path) -> None:
    of = settings(VECTORS, learning_rate=0.5, schedule="constant")
    with pytest.raises(GateError, match=r"held-out documents is (.*) nats .* and was \1 before"):
        tuned(model, tmp_path / "tune", of)


def test_what_is_not_finite_stops_with_the_layer(tmp_path: Path) -> None:
    broken = tiny_checkpoint(tmp_path / "broken", num_experts_per_tok=4)
    _, spec = open_checkpoint(broken)
    names = [spec.name(role, 1, expert) for role in ("gate", "up", "down") for expert in range(6)]
    overwrite(broken, {name: Checkpoint(broken).read(name) * 1e18 for name in names})
    with pytest.raises(CheckpointError, match="layer 1: activations on the documents are not"):
        tuned(broken, tmp_path / "tune", settings(VECTORS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only": "routers", "objective": "next_token"}, "and objective is next_token"),
        ({"only": "vectors"}, "only: vectors is for method compressed_experts, .* is full"),
        (
            {"only": "routers", "method": "compressed_experts"},
            "only: routers is for method full, and method is compressed_experts",
        ),
        ({"only": "all"}, "Input should be 'vectors'"),
    ],
)
def test_words_that_do_not_fit_are_refused(changes: Settings, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings({"method": "full"} | changes)


def test_routers_with_nothing_to_learn_are_refused(model: Path) -> None:
    spec = spec_of(read_config(model))
    with pytest.raises(RecipeError, match=r"sets the model apart .* give plan.top_k"):
        check_method(spec, settings(ROUTERS, top_k=None))
    alone = replace(spec, top_k=1, normalize_top_k=True)
    with pytest.raises(RecipeError, match="one expert with the weight 1"):
        check_method(alone, settings(ROUTERS, top_k=1))


def test_a_model_larger_than_memory_is_not_refused() -> None:
    spec = spec_of(config_of("qwen2_moe", "qwen1.5-moe-a2.7b"))
    of = settings(VECTORS, compressed=None, batch_tokens=2048, sequence_length=512)
    with pytest.raises(ResourceError, match=r"objective distill with tune\.only"):
        require_memory(spec, of.model_copy(update={"only": None}), 24 << 30)
    require_memory(spec, of, 8 << 30)
    with pytest.raises(ResourceError, match=r"only vectors_and_routers .* one layer in memory"):
        require_memory(spec, of, 2 << 30)
