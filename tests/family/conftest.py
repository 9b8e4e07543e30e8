"""Fixtures for the rows of `moe_export.testing.families`: checkpoints and transformers models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from moe_export.checkpoint import Checkpoint
from moe_export.families import spec_of
from moe_export.testing.families import ROWS, FamilyRow
from moe_export.testing.tiny import masked_checkpoint, pruned_checkpoint, tiny_checkpoint

torch.set_num_threads(1)


@dataclass
class Subject:
    """Row of the families' table and its checkpoints."""

    row: FamilyRow
    folder: Path

    @cached_property
    def source(self) -> Path:
        return tiny_checkpoint(self.folder / "source", base=self.row.config)

    @cached_property
    def widths(self) -> tuple[tuple[int, ...], ...]:
        return self.row.widths(24, 0, 1, 7, 16, 24, 3)

    @cached_property
    def shared_widths(self) -> tuple[int | None, ...] | None:
        """Widths of the shared expert per layer, if the family has one: empty, an odd width."""
        whole = spec_of(self.row.config).shared_widths
        numbers = iter((0, 17, 5))
        actual = tuple(None if width is None else next(numbers) for width in whole)
        return None if set(actual) == {None} else actual

    @cached_property
    def pruned(self) -> Path:
        return pruned_checkpoint(
            self.source, self.folder / "pruned", self.widths, self.shared_widths
        )

    @cached_property
    def masked(self) -> Path:
        return masked_checkpoint(
            self.source, self.folder / "masked", self.widths, self.shared_widths
        )

    @cached_property
    def stock(self) -> Any:
        return stock_model(self.source)


def stock_model(directory: Path) -> Any:
    """Model of an unpruned checkpoint, loaded by transformers."""
    model, loading = AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True, dtype=torch.float32
    )
    assert not loading["unexpected_keys"]
    assert not loading["missing_keys"]
    if transformers.__version__.startswith("4.") and model.config.model_type == "deepseek_v2":
        # transformers 4 does not scale the attention scores by YaRN's factor; transformers 5 does.
        for layer in model.model.layers:
            layer.self_attn.scaling = spec_of(Checkpoint(directory).config).attention_scale
    return model.eval()


@pytest.fixture(scope="session", params=ROWS, ids=lambda row: row.model_type)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(request.param, tmp_path_factory.mktemp(request.param.model_type))
