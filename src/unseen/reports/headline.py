"""The answer in a few sentences: which learner to deploy, what to expect of it, how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

from unseen.reports.notation import adjusted, bounds, count, listed, p_value, percent, points
from unseen.studies.results import Results

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Against:
    """The chosen learner compared with another one; `clear` when p, adjusted for all comparisons, is < 0.05."""

    other: str
    role: str
    difference: float
    low: float
    high: float
    p_value: float
    adjusted: float

    @property
    def clear(self) -> bool:
        return self.adjusted < SIGNIFICANT

    @property
    def verdict(self) -> str:
        if not self.clear:
            return "not distinguishable"
        return "better" if self.difference > 0 else "worse"

    @property
    def sentence(self) -> str:
        interval = (
            "" if self.low != self.low else f" (95% interval {points(self.low)} to {points(self.high)})"
        )
        role = f" ({self.role})" if self.role else ""
        return (
            f"Against {self.other}{role}: {points(self.difference)} percentage points{interval}, "
            f"p = {p_value(self.adjusted)}: {self.verdict}.".replace("= <", "<")
        )


@dataclass(frozen=True)
class Headline:
    """What a reader in a hurry takes away."""

    method: str
    expectation: str
    spread: str
    certainty: str
    comparisons: tuple[Against, ...]
    selection: str
    accuracy: float
    low: float
    high: float


def headline(results: Results) -> Headline:
    """Words and numbers for the chosen learner. Raises InputError when no run has finished."""
    choice = results.choice
    rows = results.table[results.table.method == choice.method]
    average, domains = rows.iloc[-1], rows.iloc[:-1]
    one = len(domains) == 1
    over = "" if one else f"averaged over {len(domains)} domains, "
    interval = bounds(average.low, average.high)
    expectation = (
        f"{_where(results)}: accuracy {percent(average.accuracy)} "
        f"({f'95% interval {interval}; ' if interval else ''}{over}{count(int(average.seeds), 'seed')}, "
        f"{int(average.n):,} examples), against {percent(average.id_accuracy)} on held-back examples of its "
        "training domains."
    )
    worst, best = domains.loc[domains.accuracy.idxmin()], domains.loc[domains.accuracy.idxmax()]
    spread = (
        ""
        if one
        else f"It ranges from {percent(worst.accuracy)} ({worst.domain}) to {percent(best.accuracy)} "
        f"({best.domain}): a new domain may fall anywhere in between, or outside."
    )
    comparisons = _comparisons(results)
    return Headline(
        method=choice.method,
        expectation=expectation,
        spread=spread,
        certainty=_certainty(results, comparisons),
        comparisons=comparisons,
        selection=_selection(results),
        accuracy=float(average.accuracy),
        low=float(average.low),
        high=float(average.high),
    )


def _where(results: Results) -> str:
    """What was unseen, as the start of a sentence."""
    names, after = results.asked[0], results.plan["after"]
    if after is not None:
        held_out = (
            f", and on {listed(names)}, which it has not seen" if len(results.asked) == 1 and names else ""
        )
        return f"On what is later than {after}{held_out}"
    if len(results.unseen_domains) == 1:
        return f"On {results.unseen_domains[0]}, which it has not seen"
    return "On domains it has not seen"


def baseline(results: Results) -> str | None:
    """The method that is plain ERM, if the study has one."""
    for method in results.methods:
        learner = results.plan["learners"][method]
        plain = learner["update"]["name"] == "plain" and learner["averaging"] is None
        if learner["objective"]["name"] == "erm" and plain:
            return method
    return None


def _comparisons(results: Results) -> tuple[Against, ...]:
    """With every other learner: plain ERM first, then by their score."""
    choice, erm = results.choice, baseline(results)
    others = sorted(choice.against, key=lambda m: (m != erm, -choice.scores[m]))
    runner_up = max(choice.against, key=lambda m: choice.scores[m], default=None)
    holm = adjusted(choice.against)

    def role(method: str) -> str:
        names = {"plain ERM": method == erm, "the runner-up": method == runner_up}
        return ", ".join(name for name, applies in names.items() if applies)

    return tuple(
        Against(
            m,
            role(m),
            choice.against[m].difference,
            choice.against[m].low,
            choice.against[m].high,
            choice.against[m].p_value,
            holm[m],
        )
        for m in others
    )


def _certainty(results: Results, comparisons: tuple[Against, ...]) -> str:
    if not comparisons:
        return "Nothing was compared with it: add other learners to know whether it is a good choice."
    unclear = [c.other for c in comparisons if not c.clear]
    worse = [c.other for c in comparisons if c.clear and c.difference < 0]
    if worse:
        return (
            f"{listed(worse)} did better on the unseen examples, but choosing by their labels would be peeking; "
            f"{results.rule} selection points here."
        )
    if len(unclear) == len(comparisons):
        several = "either of the others" if len(unclear) == 2 else "any of the others"
        return f"It is not distinguishable from {unclear[0] if len(unclear) == 1 else several} by these data."
    if unclear:
        which = (
            listed(unclear) if len(unclear) <= 3 else f"{len(unclear)} of {len(comparisons)} other learners"
        )
        return f"It is not distinguishable from {which} by these data, and better than the rest."
    return f"It is better than {'the other' if len(comparisons) == 1 else 'every other'} learner compared."


def _selection(results: Results) -> str:
    chosen = f"Chosen for the {results.choice.reason}."
    if len(results.asked) > 1:
        chosen += (
            " That uses their labels, as cross-validation does; the domain it will meet is not among them."
        )
    if not results.plan["search"]:
        return f"{chosen} Hyperparameters were given, not searched."
    looks = (
        "looks at labels of the unseen domains: an upper bound, not to be had in practice"
        if results.peeks
        else "never looks at labels of the unseen domains"
    )
    draws = results.plan["search"] + 1
    return f"{chosen} Hyperparameters: the best of {draws} draws by {results.rule}, which {looks}."
