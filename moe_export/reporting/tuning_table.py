"""The training of the model: its facts, a sentence and a table."""

from __future__ import annotations

from moe_export.artifacts.report_tuning import TuningFacts
from moe_export.artifacts.tuning import Tuning
from moe_export.reporting.tables import Table
from moe_export.reporting.units import count, figures, parameters


def tuning_facts(tuning: Tuning) -> TuningFacts:
    """Figures of a tuning that the report states."""
    routers = tuning.routers
    return TuningFacts(
        method=tuning.method,
        objective=tuning.objective,
        steps=tuning.steps,
        tokens=tuning.tokens,
        trained_parameters=tuning.trained_parameters,
        experts_per_token=tuning.active_experts,
        before=tuning.before,
        after=tuning.after,
        largest_bias=None if routers is None else max(r.largest_bias for r in routers),
        condensers=None if routers is None else max(len(r.condensers) for r in routers),
        vectors=tuning.vectors,
        sources=tuning.sources,
    )


def tuning_sentence(facts: TuningFacts) -> str:
    """States method, length, new loss and experts per token."""
    goal = "divergence from the source" if facts.objective == "distill" else "loss"
    experts = "expert is" if facts.experts_per_token == 1 else "experts are"
    return (
        f"Tuned by {facts.method}: {count(facts.steps)} steps over {count(facts.tokens)} tokens "
        f"trained {parameters(facts.trained_parameters)} parameters. On held-out documents the "
        f"{goal} is {figures(facts.after)} nats per token, and was {figures(facts.before)} before. "
        f"{facts.experts_per_token} routed {experts} computed per token{_added(facts)}."
    )


def tuning_table(facts: TuningFacts) -> Table:
    """Lists the sources of documents with their held-out losses."""
    rows = [
        [
            each.name,
            count(each.documents),
            count(each.held_out_documents),
            figures(each.before),
            figures(each.after),
        ]
        for each in facts.sources
    ]
    head = ["tuned on", "documents", "held out", "nats before", "nats after"]
    return Table(head, rows)


def _added(facts: TuningFacts) -> str:
    """Vectors, or biases and condensers, in words; empty for methods that add nothing."""
    if facts.vectors is not None:
        return (
            ", scaled by the vectors of its other experts, whose entries moved by "
            f"{figures(facts.vectors.input)} from 1 on the average at the input"
        )
    if facts.largest_bias is not None:
        return (
            f", {facts.condensers} of them the same for all; the largest bias of a router is "
            f"{figures(facts.largest_bias)}"
        )
    return ""
