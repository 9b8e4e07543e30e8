"""Sections of a recipe that must agree with each other; the first that do not stop the recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from moe_export.formats import TABLE, Executor
from moe_export.recipe.importance import AUTO, ROUNDING_OF

if TYPE_CHECKING:
    from moe_export.recipe.recipe import Recipe


def check_kind(recipe: Recipe) -> None:
    """Stops a recipe that is no run, or a run and a comparison at once."""
    if (recipe.plan is None) == (recipe.bakeoff is None):
        raise ValueError("a recipe has a plan section or a bakeoff section, and not both")


def check_derived_keys(recipe: Recipe) -> None:
    """Stops a recipe that gives keys which follow from other sections."""
    if recipe.plan is not None and recipe.plan.formats is not None:
        raise ValueError("plan.formats is taken from the quantize section; leave it out")
    if recipe.importance.shared_expert is not None:
        raise ValueError("importance.shared_expert follows plan.shared_expert; leave it out")
    if recipe.importance.top_k is not None:
        raise ValueError("importance.top_k follows plan.top_k; leave it out")
    if recipe.plan is not None and recipe.plan.layout is not None:
        raise ValueError("plan.layout is taken from the export section; leave it out")
    if recipe.plan is not None and recipe.plan.linear is not None:
        raise ValueError("plan.linear is taken from the export section; leave it out")
    if recipe.calibrate.held_out is not None:
        raise ValueError("calibrate.held_out follows ranking.held_out; leave it out")
    if recipe.ranking.plan is not None or recipe.ranking.prune is not None:
        raise ValueError("ranking.plan and ranking.prune follow these sections; leave them out")
    bakeoff = recipe.bakeoff
    if bakeoff is not None and (bakeoff.ranking is not None or bakeoff.prune is not None):
        raise ValueError("bakeoff.ranking and bakeoff.prune follow these sections; leave them out")


def check_tune(recipe: Recipe) -> None:
    """Stops a tuning that other sections leave no place for, or that gives keys of others."""
    tune = recipe.tune
    if tune is None:
        return
    if recipe.bakeoff is not None:
        raise ValueError("a bakeoff trains nothing; leave the tune section out")
    if tune.top_k is not None:
        raise ValueError("tune.top_k follows plan.top_k; leave it out")
    if tune.after == "prune" and recipe.prune.save_padded:
        raise ValueError(
            "prune.save_padded writes the padded twin before tune.after: prune trains the model; "
            "leave one of them out"
        )


def check_vectors(recipe: Recipe) -> None:
    """Stops a twin for stock loaders, which would drop what tuning adds."""
    tune = recipe.tune
    if tune is None or tune.method not in ("compressed_experts", "condenser"):
        return
    if recipe.prune.save_padded:
        raise ValueError(
            "prune.save_padded is for stock loaders, which would drop the tensors that tune.method "
            f"{tune.method} adds; leave one of them out"
        )


def check_execution(recipe: Recipe) -> None:
    """Stops an export that the chosen operator or provider cannot run."""
    if recipe.export.platforms is not None and not recipe.export.library:
        raise ValueError(
            "export.platforms names libraries and export.library is false; set it to true, or "
            "leave export.platforms out"
        )
    if recipe.export.platforms is not None and not recipe.export.platforms:
        raise ValueError("export.platforms is empty; name a platform, or leave it out")
    if recipe.export.layout == "packed" and recipe.export.web:
        raise ValueError(
            "export.web is for JavaScript, which has no way to register the operator library that "
            "export.layout packed needs; set export.layout to portable"
        )
    if recipe.export.layout == "packed" and recipe.validate_.operator == "portable":
        raise ValueError(
            "export.layout packed runs in the native library only; set validate.operator to "
            "native, or export.layout to portable"
        )
    if "cuda" not in recipe.validate_.providers:
        return
    if recipe.export.dtype == "float32":
        raise ValueError(
            "validate.providers has cuda, and ONNX Runtime's CUDA provider has no attention in "
            "float32; set export.dtype to float16"
        )
    if recipe.export.layout == "packed":
        raise ValueError(
            "validate.providers has cuda, and export.layout packed is the layout of the CPU's "
            "kernels; set export.layout to portable"
        )
    if recipe.export.linear == "panels":
        raise ValueError(
            "validate.providers has cuda, and export.linear panels has kernels for the CPU only; "
            "set export.linear to standard"
        )


def check_auto(recipe: Recipe) -> None:
    """Stops a choice of formats without a byte budget or without the score that it needs."""
    if recipe.quantize is None or not recipe.quantize.is_auto or recipe.plan is None:
        return
    if recipe.plan.score == AUTO:
        raise ValueError(
            "quantize.experts: auto weighs dropping against rounding by one score, and plan.score: "
            "auto compares scores of different units; give one of the two by name"
        )
    if recipe.plan.keep is not None:
        raise ValueError(
            "quantize.experts: auto needs a budget; give plan.target_bytes or "
            "plan.target_active_bytes in place of plan.keep"
        )
    if recipe.plan.speedup is not None:
        raise ValueError(
            "plan.speedup compares models in the same formats, which quantize.experts: auto leaves "
            "open; name the format, or give plan.target_active_bytes"
        )
    if recipe.plan.score not in ROUNDING_OF:
        raise ValueError(
            "quantize.experts: auto weighs dropping against rounding in one unit; give plan.score "
            f"{' or '.join(ROUNDING_OF)}"
        )
    foreign = {cost for score, cost in ROUNDING_OF.items() if score != recipe.plan.score}
    if named := foreign.intersection(recipe.importance.scores):
        raise ValueError(
            f"importance.scores has {', '.join(sorted(named))}, which is not in the unit of "
            f"plan.score {recipe.plan.score}; leave it out"
        )


def check_output(recipe: Recipe) -> None:
    """Stops a recipe that quantizes in a comparison, or exports nothing."""
    if recipe.bakeoff is not None and recipe.quantize is not None:
        raise ValueError("a bakeoff quantizes nothing; leave the quantize section out")
    if recipe.quantize is None and not recipe.export.pruned:
        raise ValueError(
            "export.pruned is false and nothing is quantized, so there is nothing to export; "
            "leave it out or add a quantize section"
        )


def check_score(recipe: Recipe) -> None:
    """Stops a plan whose score is not computed."""
    if recipe.plan is None or recipe.plan.score == AUTO:
        return
    if recipe.plan.score not in recipe.importance.scores:
        raise ValueError(
            f"plan.score {recipe.plan.score} is not in importance.scores "
            f"({', '.join(recipe.importance.scores)}); add it there"
        )


def check_ranking(recipe: Recipe) -> None:
    """Stops a choice among rankings that cannot be made."""
    ranking = recipe.ranking
    if ranking.first > ranking.held_out:
        raise ValueError(
            f"ranking.first is {ranking.first}, more than the {ranking.held_out} sequences that "
            "ranking.held_out gives; lower it"
        )
    if recipe.plan is None or recipe.plan.score != AUTO:
        return
    if recipe.plan.is_solved and "model" not in ranking.scopes:
        raise ValueError(
            "ranking.scopes has no model, and a budget of active bytes ranks over the whole model; "
            "add it"
        )
    if recipe.plan.prunes_shared and "router_frequency" in ranking.scores:
        raise ValueError(
            "ranking.scores has router_frequency, which counts what the router sends, and "
            "plan.shared_expert is prune; leave one of them out"
        )


def check_formats(recipe: Recipe) -> None:
    """Stops a format of experts that something on the way to the result does not know."""
    formats = recipe.quantize
    if formats is None:
        return
    key, words = (
        ("choices", formats.choices) if formats.is_auto else ("experts", (formats.experts,))
    )
    for facts in (TABLE[word] for word in words if word in TABLE):
        for executor in _executors(recipe, rounds=facts.is_quantized):
            if executor not in facts.executors:
                raise ValueError(f"quantize.{key}: {facts.refusal(executor)}")


def check_eval(recipe: Recipe) -> None:
    """Stops a gate without the section that it needs, and keys that follow from other sections."""
    section = recipe.eval
    if section is None:
        if recipe.validate_.gates.eval is not None:
            raise ValueError("validate.gates.eval needs the section eval, which names the tasks")
        return
    if section.provider is not None or section.max_fall is not None:
        raise ValueError(
            "eval.provider follows validate.providers and eval.max_fall is validate.gates.eval; "
            "leave both out"
        )
    if recipe.export.layout == "packed" and "portable" in (section.operators or ()):
        raise ValueError(
            "export.layout packed runs in the native library only; leave portable out of "
            "eval.operators"
        )


def _executors(recipe: Recipe, *, rounds: bool) -> Iterator[Executor]:
    """Code that a run of the recipe needs for the formats of its experts."""
    if rounds:
        yield "rounding"
    yield "packed" if recipe.export.layout == "packed" else "portable"
    if recipe.validate_.operator == "native":
        yield "native"
        if "cuda" in recipe.validate_.providers:
            yield "cuda"


CHECKS: tuple[Callable[[Recipe], None], ...] = (
    check_kind,
    check_derived_keys,
    check_tune,
    check_vectors,
    check_execution,
    check_auto,
    check_output,
    check_score,
    check_ranking,
    check_formats,
    check_eval,
)
"""Checks in order; a recipe that fails several is told of the first."""
