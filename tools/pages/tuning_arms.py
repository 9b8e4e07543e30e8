"""Ways to tune that the page compares, each as keys of one recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_export.checkpoint import read_config
from moe_export.demo import checkpoint_dir
from moe_export.recipe import Recipe
from moe_export.recipe.load import parse_recipe
from tools.pages.tuning_skills import SKILLS, TEST_DOCUMENTS

MODEL = "demo-narrow"
TOP_K: int = read_config(checkpoint_dir(MODEL))["num_experts_per_tok"]
HALF = TOP_K // 2
CONDENSERS = 2
"""Experts that every token gets with condensers."""

OLD = {"arithmetic": 200, "sums": 200, "facts": 300, "strings": 100, "text": 32}
"""Skills that the model has, and held-out documents of each."""

SHARES = {
    "shift": 0.16,
    "inverse": 0.42,
    "arithmetic": 0.06,
    "sums": 0.16,
    "facts": 0.15,
    "strings": 0.04,
    "text": 0.01,
}
"""Share of each skill in the documents: about 60 % of the tokens are of new skills."""


@dataclass(frozen=True)
class Arm:
    """One way to tune.

    Attributes:
        name: Name in the table.
        keys: Keys of the recipe that ask for it.
        control: Name of the arm that it has to beat to be worth its trouble; empty if there is
            none.
        tunes: False if nothing is trained.
    """

    name: str
    keys: tuple[str, ...]
    control: str = ""
    tunes: bool = True


_FEWER = f"plan.top_k={HALF}"
_COMPRESSED = ("tune.method=compressed_experts", "tune.compressed.auxiliary=half")
_PORTABLE = ("export.library=false", "validate.operator=portable")
_CONDENSER = "tune.method=condenser"
_MORE = f"model.overrides.num_experts_per_tok={TOP_K + CONDENSERS}"

FULL = "full"
HALF_TUNED = "half of the experts, tuned"
MORE_TUNED = "full, K + r experts"

ARMS: tuple[Arm, ...] = (
    Arm("source", ("tune=null",), tunes=False),
    Arm("half of the experts", ("tune=null", _FEWER), tunes=False),
    Arm(FULL, ()),
    Arm(HALF_TUNED, (_FEWER,)),
    Arm("compressed, input", (*_COMPRESSED, "tune.compressed.form=input"), HALF_TUNED),
    Arm("compressed, tied", (*_COMPRESSED, "tune.compressed.form=tied"), HALF_TUNED),
    Arm(
        "compressed, three",
        (*_COMPRESSED, "tune.compressed.form=three", *_PORTABLE),
        HALF_TUNED,
    ),
    Arm("esft, token", ("tune.method=esft", "tune.esft.score=token"), FULL),
    Arm("esft, gate", ("tune.method=esft", "tune.esft.score=gate"), FULL),
    Arm("frozen_router", ("tune.method=frozen_router",), FULL),
    Arm("dense_mixer", ("tune.method=dense_mixer",), FULL),
    Arm("condenser, bias only", (_CONDENSER, "tune.condenser.count=0"), FULL),
    Arm(
        "condenser, K + r",
        (_CONDENSER, f"tune.condenser.count={CONDENSERS}", "tune.condenser.budget=added"),
        MORE_TUNED,
    ),
    Arm(
        "condenser, (K - r) + r",
        (_CONDENSER, f"tune.condenser.count={CONDENSERS}", "tune.condenser.budget=kept"),
        FULL,
    ),
    Arm(MORE_TUNED, (_MORE,)),
)

BY_NAME = {arm.name: arm for arm in ARMS}

_DISTILL = "tune.objective=distill"
_TIED = (*_COMPRESSED, "tune.compressed.form=tied", _DISTILL)

TOWARDS: tuple[Arm, ...] = (
    Arm("routers, by layer", (_DISTILL, _FEWER, "tune.only=routers")),
    Arm("vectors, by layer", (*_TIED, "tune.only=vectors")),
    Arm("vectors and routers, by layer", (*_TIED, "tune.only=vectors_and_routers")),
    Arm("all weights, in memory", (_DISTILL, _FEWER)),
)
"""Ways to bring half of the experts back towards the source, on skills that it has."""


def recipe_of(
    arm: Arm, skills: Path, *, seed: int, steps: int, rate: float, keep: float = 1.0
) -> Recipe:
    """Recipe of an arm.

    Args:
        arm: The arm.
        skills: Folder of the files that `write_skills` wrote.
        seed: Seed of the documents and of their order.
        steps: Steps of the training.
        rate: Learning rate.
        keep: Share of the expert dimensions that is kept.
    """
    changes = (f"tune.seed={seed}",) if arm.tunes else ()
    content = _content(skills, steps, rate, keep)
    if arm in TOWARDS:
        content["tune"]["sources"] = [
            _source(skills, name, "train") | {"weight": SHARES[name]} for name in OLD
        ]
    return parse_recipe(content, (*changes, *arm.keys))


def _content(skills: Path, steps: int, rate: float, keep: float) -> dict[str, Any]:
    return {
        "model": {"source": MODEL},
        "tune": {
            "method": "full",
            "sources": [
                _source(skills, name, "train") | {"weight": share} for name, share in SHARES.items()
            ],
            "documents": 6000,
            "held_out": 0.01,
            "steps": steps,
            "sequence_length": 192,
            "batch_tokens": 1152,
            "learning_rate": rate,
            "prompt_weight": 0.25,
        },
        "calibrate": {
            "sources": [_source(skills, name, "train") for name in SHARES],
            "sequences": 672,
            "sequence_length": 512,
        },
        "importance": {"scores": ["fisher_margin"]},
        "plan": {"keep": keep, "score": "fisher_margin"},
        "prune": {"refit": False},
        "export": {"dtype": "float32"},
        "validate": {
            "tasks": [
                _source(skills, name, "test") | {"items": items}
                for name, items in (TEST_DOCUMENTS | OLD).items()
            ],
            "sequence_length": 512,
        },
        "report": {},
    }


def _source(skills: Path, name: str, part: str) -> dict[str, Any]:
    if name not in SKILLS:
        return {"demo": name}
    return {
        "jsonl": str(skills / f"{name}_{part}.jsonl"),
        "prompt_field": "prompt",
        "answer_field": "answer",
    }
