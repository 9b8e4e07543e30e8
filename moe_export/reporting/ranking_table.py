"""The comparison of rankings as a table and as sentences; see `moe_export.artifacts.ranking`."""

from __future__ import annotations

from moe_export.artifacts.ranking import Candidate, Ranking
from moe_export.reporting.tables import SCOPES, Table
from moe_export.reporting.units import NONE, figures


def ranking_table(ranking: Ranking) -> Table:
    """Lists the candidates, finalists first, each group by its KL; that of the choice is bold."""
    ordered = sorted(ranking.candidates, key=_place)
    sources = [each.source for each in ranking.choice.sources]
    rows = [
        [
            each.score,
            each.scope,
            figures(each.first_kl_nats),
            _with_error(each.kl_nats, each.kl_nats_stderr),
            NONE if is_choice(each, ranking) else _excess(each),
            figures(each.answer_loss_nats),
            *(figures(source.kl_nats) for source in each.sources),
            *([NONE] * (len(sources) - len(each.sources))),
        ]
        for each in ordered
    ]
    head = [
        "ranking", "scope", "KL of the first round", "KL", "more than the choice",
        "loss on answers", *(f"KL {name}" for name in sources),
    ]  # fmt: skip
    best = next(number for number, each in enumerate(ordered) if is_choice(each, ranking))
    return Table(head, rows, words=2, strong=frozenset({(best, 0), (best, 3)}))


def ranking_sentence(ranking: Ranking) -> str:
    """States the choice, and the documents and the weights that it rests on."""
    choice = ranking.choice
    finalists = sum(each.kl_nats is not None for each in ranking.candidates)
    weights = " : ".join(f"{weight:.2g}" for weight in ranking.weights)
    after = "refitted" if ranking.refitted else "masked"
    loss = ""
    if ranking.unpruned_answer_loss_nats is not None:
        loss = (
            f" The loss on answers of the unpruned model is "
            f"{figures(ranking.unpruned_answer_loss_nats)}."
        )
    return (
        f"plan.score is auto: of {len(ranking.candidates)} rankings, {choice.score} "
        f"{SCOPES.get(choice.scope, choice.scope)} has the least KL from the unpruned model. All "
        f"were masked on {ranking.first_sequences} held-out sequences, the best {finalists} "
        f"{after} on {ranking.sequences}, with sources weighed {weights}; nats per scored token, "
        f"answers alone where a source has prompts.{loss}"
    )


def is_choice(candidate: Candidate, ranking: Ranking) -> bool:
    """True for the candidate that the plan takes."""
    choice = ranking.choice
    return (candidate.score, candidate.scope) == (choice.score, choice.scope)


def _place(candidate: Candidate) -> tuple[bool, float]:
    kl_nats = candidate.kl_nats
    return (kl_nats is None, candidate.first_kl_nats if kl_nats is None else kl_nats)


def _excess(candidate: Candidate) -> str:
    return _with_error(candidate.excess_nats, candidate.excess_nats_stderr)


def _with_error(value: float | None, stderr: float | None) -> str:
    return figures(value) if stderr is None else f"{figures(value)} ± {figures(stderr, 2)}"
