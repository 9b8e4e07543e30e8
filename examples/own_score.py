"""Rank dimensions by a score of your own.

python examples/own_score.py [DIRECTORY] [KEY=VALUE ...]

The score is registered before the recipe is read; its name then stands in the recipe like any
other. Under torchrun every process runs this script, so each has the score.
"""

from __future__ import annotations

import sys

import moe_export
from moe_export.scores import DataScore


def absolute_output(batch):
    """Mean norm of the contribution of a dimension to the layer's output:

        sum over routed tokens t of |p[t] * h[t, j]| * |down[:, j]|,
        divided by the tokens of the whole set

    with p the routing weight. It is called with the tokens of one batch that reach one expert.

    Args:
        batch: `values["h"]` [tokens, width], `routing_N` [tokens] and `weights.down_DW`
            [hidden, width].

    Returns:
        float64 [width]; the sums of all batches are added up.
    """
    weighted = batch.values["h"].double() * batch.routing_N.double()[:, None]
    return weighted.abs().sum(0) * batch.weights.down_DW.double().norm(dim=0)


moe_export.register_score(
    DataScore(
        name="absolute_output",
        unit="output",
        source="this example",
        measure=absolute_output,
        mean_over="tokens",
        values=("h",),
    )
)

RECIPE = {
    "model": {"source": "demo"},
    "calibrate": {
        "sources": [{"demo": "sums"}, {"demo": "facts"}],
        "sequences": 64,
        "sequence_length": 256,
    },
    "importance": {"scores": ["fisher_margin", "absolute_output"]},
    "plan": {"keep": 0.5},
}


def main(directory: str = "runs/own_score", *overrides: str) -> None:
    for score in RECIPE["importance"]["scores"]:
        # Both plans use the same calibration and importance, which the second one reuses.
        plan = moe_export.plan(RECIPE, directory, [*overrides, f"plan.score={score}"])
        for layer in plan.layers:
            print(f"{score}, layer {layer.layer}: {' '.join(map(str, layer.widths))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
