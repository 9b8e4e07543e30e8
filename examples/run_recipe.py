"""Run a recipe from Python, then read its plan and its report.

python examples/run_recipe.py [RECIPE] [DIRECTORY] [KEY=VALUE ...]
"""

from __future__ import annotations

import json
import sys

import moe_export


def main(
    recipe: str = "recipes/demo_50pct.yaml", directory: str = "runs/example", *overrides: str
) -> None:
    result = moe_export.run(recipe, directory, overrides=overrides, progress=Lines())

    plan = result.plan
    print(f"{plan.kept:.0%} of all expert dimensions are kept, ranked by {plan.score}")
    for layer in plan.layers:
        print(f"layer {layer.layer}: widths {min(layer.widths)} to {max(layer.widths)}")

    report = json.loads(result.report.with_suffix(".json").read_text(encoding="utf-8"))
    for variant in report["accuracy"]:
        print(f"{variant['variant']}: mean exact match {variant['mean_exact_match']:.3f}")
    print(f"open {result.report}")

    print(moe_export.generate(result.directory, "12+30=", new_tokens=4))


class Lines(moe_export.Watcher):
    """One line for every finished step."""

    def on_step(self, state, seconds) -> None:
        if seconds is not None:
            print(f"{state.step.folder}: {f'{seconds:.1f} s' if seconds else 'fresh'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
