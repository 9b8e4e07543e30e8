"""Models with states of fixed size in the server's rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_export.errors import RecipeError
from moe_export.ort.session import OrtModel
from moe_export.serve.engine import Engine
from moe_export.serve.limits import Limits
from moe_export.serve.slots import Slots
from moe_export.testing.families import LFM2_MOE, QWEN3_5_MOE_TEXT, FamilyRow
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.decoding import exported
from tests.helpers.engine import Run, Silent, require_answers, tokens


@pytest.fixture(scope="module", params=[LFM2_MOE, QWEN3_5_MOE_TEXT], ids=lambda r: r.model_type)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OrtModel:
    row: FamilyRow = request.param
    folder: Path = tmp_path_factory.mktemp("states")
    source = tiny_checkpoint(folder / "source", base=row.config)
    return OrtModel(exported(source, folder / "onnx"), "cpu", 1, "portable", "static")


def test_jobs_get_the_tokens_of_a_model_alone_while_others_are_amid_their_prompts(
    session: OrtModel,
) -> None:
    engine = Engine(session, Limits(rows=3, context=64, queue=40, chunk=8), Silent())
    prompts = [[token % 250 for token in tokens(count, count)] for count in (3, 20, 2, 30, 5, 1, 8)]
    runs = [Run(prompt, new) for prompt, new in zip(prompts, [9, 4, 12, 3] * 2, strict=False)]
    engine.start()
    require_answers(engine, session, runs)
    engine.stop()


def test_other_providers_are_refused(session: OrtModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "provider", "cuda")
    with pytest.raises(RecipeError, match=r"_state on the provider cpu alone, not cuda"):
        Slots(session, 2, 16)
