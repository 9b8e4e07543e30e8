"""Tables of a comparison of rankings, with verdicts in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from moe_export.artifacts.bakeoff import Bakeoff, RankingResult
from moe_export.artifacts.validation import TaskScores
from moe_export.reporting import html, markdown
from moe_export.reporting.tables import Table
from moe_export.reporting.units import NONE, figures, percent, points

OURS = ("auto", "fisher_margin")
"""Rankings that the others are compared with: the first of these that is there."""

TITLE = "Rankings compared"


@dataclass(frozen=True)
class Spread:
    """Mean, least and greatest value of a figure over the calibration draws."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Returns the spread of the values that are not None; None without any."""
        known = [value for value in values if value is not None]
        return cls(sum(known) / len(known), min(known), max(known)) if known else None


@dataclass(frozen=True)
class Ranking:
    """One ranking at one `keep`, over all draws.

    Attributes:
        name: name of its row.
        score: name of the score, or `auto`.
        is_plain: True if dimensions are ranked over the whole model.
        refitted: True if `down` is refitted.
        kept: fraction of dimensions that are kept, mean over the draws.
        rates: exact match by task, fraction; None for a task without answers.
        losses: loss by task, nats per token.
        mean: mean exact match over the tasks with answers; None without such tasks.
    """

    name: str
    score: str
    is_plain: bool
    refitted: bool
    kept: float
    rates: Mapping[str, Spread | None]
    losses: Mapping[str, Spread | None]
    mean: Spread | None


def bakeoff_markdown(bakeoff: Bakeoff) -> str:
    """Renders a comparison in Markdown, with a table and a sentence for every `keep`."""
    blocks = [f"# {TITLE}", markdown.escaped(_introduction(bakeoff))]
    for keep in _keeps(bakeoff):
        blocks += [
            f"## {percent(keep)} kept",
            markdown.table(keep_table(bakeoff, keep)),
            *(markdown.escaped(sentence) for sentence in verdicts(bakeoff, keep)),
        ]
    return "\n\n".join(blocks) + "\n"


def bakeoff_html(bakeoff: Bakeoff) -> str:
    """Renders a comparison as a page."""
    blocks = [f"<h1>{escape(TITLE)}</h1>", html.paragraph(_introduction(bakeoff), "muted")]
    for keep in _keeps(bakeoff):
        blocks += [
            f"<h2>{escape(percent(keep))} kept</h2>",
            *(html.paragraph(sentence) for sentence in verdicts(bakeoff, keep)),
            html.table(keep_table(bakeoff, keep)),
        ]
    return html.page(TITLE, "\n".join(blocks))


def rankings(bakeoff: Bakeoff, keep: float) -> list[Ranking]:
    """Returns the rankings at one `keep`, the best mean first, equal ones by name."""
    results = [result for result in bakeoff.results if result.keep == keep]
    groups: dict[str, list[RankingResult]] = {}
    for result in results:
        groups.setdefault(_name(result), []).append(result)
    by_name = [_ranking(name, bakeoff.tasks, draws) for name, draws in groups.items()]
    return sorted(by_name, key=lambda r: (-(r.mean.mean if r.mean else 0.0), r.name))


def _name(result: RankingResult) -> str:
    """Name of the row of a result."""
    words = [result.score]
    words += ["by layer"] if result.scope == "layer" else []
    words += ["whole experts"] if result.unit == "expert" else []
    words += ["refitted"] if result.refitted else []
    return ", ".join(words)


def _ranking(name: str, tasks: Sequence[str], draws: Sequence[RankingResult]) -> Ranking:
    """Summarizes one ranking at one `keep` over all draws."""
    first = draws[0]
    return Ranking(
        name=name,
        score=first.score,
        is_plain=first.unit == "dimension" and first.scope is None,
        refitted=first.refitted is True,
        kept=sum(draw.kept for draw in draws) / len(draws),
        rates={task: Spread.of([rate_of(draw.tasks[task]) for draw in draws]) for task in tasks},
        losses={task: Spread.of([draw.tasks[task].loss_nats for draw in draws]) for task in tasks},
        mean=Spread.of([_mean_rate(draw) for draw in draws]),
    )


def rate_of(scores: TaskScores) -> float | None:
    """Returns the rate of right choices, or of exact matches; None for a task without answers."""
    return scores.exact_match if scores.choice_accuracy is None else scores.choice_accuracy


def _mean_rate(result: RankingResult) -> float | None:
    """Returns the mean rate over the tasks with answers; None without such tasks."""
    if all(scores.choice_accuracy is None for scores in result.tasks.values()):
        return result.mean_exact_match
    rates = [rate for scores in result.tasks.values() if (rate := rate_of(scores)) is not None]
    return sum(rates) / len(rates)


def keep_table(bakeoff: Bakeoff, keep: float) -> Table:
    """Lists rankings by task; the best figure of each column is bold."""
    solved, read = _answered(bakeoff), _read(bakeoff)
    ranked = rankings(bakeoff, keep)
    columns = [[ranking.rates[task] for ranking in ranked] for task in solved]
    columns += [[ranking.losses[task] for ranking in ranked] for task in read]
    columns.append([ranking.mean for ranking in ranked])
    shows = [_rate] * len(solved) + [_loss] * len(read) + [_rate]
    better = [max] * len(solved) + [min] * len(read) + [max]
    strong = set()
    for place, (column, best_of) in enumerate(zip(columns, better, strict=True)):
        shown = [round(spread.mean, 9) for spread in column if spread]
        strong |= {
            (row, place + 1)
            for row, spread in enumerate(column)
            if spread and round(spread.mean, 9) == best_of(shown)
        }
    rows = [
        [ranking.name, *(show(column[row]) for show, column in zip(shows, columns, strict=True))]
        for row, ranking in enumerate(ranked)
    ]
    rows.append(_unpruned_row(bakeoff, solved, read))
    head = [
        "ranking",
        *(f"{task}, %" for task in solved),
        *(f"{task}, nats" for task in read),
        "mean, %",
    ]
    return Table(head, rows, strong=frozenset(strong))


def _unpruned_row(bakeoff: Bakeoff, solved: Sequence[str], read: Sequence[str]) -> list[str]:
    """Lists the scores of the unpruned model."""
    before = bakeoff.baseline
    rates = [rate for task in solved if (rate := rate_of(before[task])) is not None]
    return [
        "unpruned",
        *(points(rate) for rate in rates),
        *(figures(before[task].loss_nats) for task in read),
        points(sum(rates) / len(rates)) if rates else NONE,
    ]


def verdicts(bakeoff: Bakeoff, keep: float) -> Iterator[str]:
    """Yields sentences on the rankings that do better than ours, masked and refitted apart."""
    ranked = rankings(bakeoff, keep)
    for refitted in sorted({ranking.refitted for ranking in ranked}):
        yield _verdict(bakeoff, [ranking for ranking in ranked if ranking.refitted == refitted])
    yield from _choices(bakeoff, keep)
    off = [r for r in ranked if abs(r.kept - keep) >= 0.0005]
    if off:
        words = ", ".join(f"{r.name} {percent(r.kept)}" for r in off)
        yield f"Not all of them keep {percent(keep)} of the dimensions: {words}."


def _verdict(bakeoff: Bakeoff, ranked: Sequence[Ranking]) -> str:
    ours = min((r for r in ranked if _is_ours(r)), key=lambda r: OURS.index(r.score), default=None)
    if ours is None:
        return f"{OURS[-1]} is not among the rankings."
    others = [ranking for ranking in ranked if ranking is not ours]
    if not others:
        return "There is no other ranking to compare with."
    wins = []
    for task in _answered(bakeoff):
        wins += _wins(others, ours, task, "exact_match")
    for task in _read(bakeoff):
        wins += _wins(others, ours, task, "loss_nats")
    wins += _mean_wins(others, ours)
    if wins:
        return f"Better than {ours.name} here: {'; '.join(wins)}."
    return f"No other ranking is better than {ours.name} in any column here."


def _is_ours(ranking: Ranking) -> bool:
    return ranking.is_plain and ranking.score in OURS


def _choices(bakeoff: Bakeoff, keep: float) -> Iterator[str]:
    """Yields a sentence on what `auto` chose in each draw."""
    words = [
        f"{result.choice} in draw {result.seed}{' (refitted)' if result.refitted else ''}"
        for result in bakeoff.results
        if result.keep == keep and result.choice is not None
    ]
    if words:
        yield f"auto chose {'; '.join(words)}."


def _wins(others: Sequence[Ranking], ours: Ranking, task: str, key: str) -> list[str]:
    """Describes the rankings that beat ours in one column, with both figures."""
    wins = []
    is_rate = key == "exact_match"
    mine = ours.rates[task] if is_rate else ours.losses[task]
    for other in others:
        theirs = other.rates[task] if is_rate else other.losses[task]
        if mine is None or theirs is None:
            continue
        ahead = theirs.mean - mine.mean if is_rate else mine.mean - theirs.mean
        if ahead > 1e-9:
            wins.append(_words(other.name, f"on {task}", theirs, mine, is_rate))
    return wins


def _mean_wins(others: Sequence[Ranking], ours: Ranking) -> list[str]:
    return [
        _words(other.name, "in the mean", other.mean, ours.mean, True)
        for other in others
        if other.mean and ours.mean and other.mean.mean - ours.mean.mean > 1e-9
    ]


def _words(name: str, where: str, theirs: Spread, mine: Spread, is_rate: bool) -> str:
    show = percent if is_rate else _nats
    apart = theirs.low > mine.high if is_rate else theirs.high < mine.low
    draws = "" if apart else ", within the spread of the draws"
    return f"{name} {where} ({show(theirs.mean)} against {show(mine.mean)}{draws})"


def _nats(loss: float) -> str:
    return f"{loss:.4f} nats"


def _rate(spread: Spread | None) -> str:
    if spread is None:
        return NONE
    return _spread(spread, points)


def _loss(spread: Spread | None) -> str:
    if spread is None:
        return NONE
    return _spread(spread, figures)


def _spread(spread: Spread, show: Callable[[float], str]) -> str:
    """Shows the mean, and least and most if they read differently."""
    low, high = show(spread.low), show(spread.high)
    return show(spread.mean) if low == high else f"{show(spread.mean)}\n[{low}–{high}]"


def _introduction(bakeoff: Bakeoff) -> str:
    draws = len({result.seed for result in bakeoff.results})
    over = (
        f"the mean over {draws} calibration draws, with least and most" if draws > 1 else "one draw"
    )
    has_choices = any(s.choice_accuracy is not None for s in bakeoff.baseline.values())
    rate = "answers likelier than every wrong choice" if has_choices else "exact match"
    return (
        "Every ranking removes the dimensions that it finds least important from the same model. "
        f"Tasks: {rate} in percent; tasks without answers: loss in nats per token, where less "
        f"is better. Figures are {over}. The best of each column is bold."
    )


def _keeps(bakeoff: Bakeoff) -> list[float]:
    return sorted({result.keep for result in bakeoff.results}, reverse=True)


def _answered(bakeoff: Bakeoff) -> list[str]:
    return [t for t in bakeoff.tasks if bakeoff.baseline[t].exact_match is not None]


def _read(bakeoff: Bakeoff) -> list[str]:
    return [t for t in bakeoff.tasks if bakeoff.baseline[t].exact_match is None]
