"""Counts of a language model's verdicts: how many could be read, how many depend on the order, what they cost."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import fsum
from typing import Any, Literal

from preferent.evaluation import statistics
from preferent.evaluation.judges.protocol import MUCH_UNPARSABLE, Call, Reply

JudgeChoice = Literal["A", "B", "tie"]


@dataclass(frozen=True, slots=True)
class JudgeVerdict:
    """One verdict: the answer shown first ("a" or "b"), the vote, the choice, and the expected outcome for a.

    The choice is None if the reply has none. The expected outcome is P(a is better) + P(tie) / 2; it is None if the
    probabilities of the labels are unknown.
    """

    first: Literal["a", "b"]
    vote: int
    choice: JudgeChoice | None
    probability: float | None

    @classmethod
    def of(
        cls, first: Literal["a", "b"], vote: int, label: str | None, shares: Mapping[str, float] | None
    ) -> "JudgeVerdict":
        """Return the verdict for the label of a reply, "1", "2", "tie" or None, and the labels' probabilities."""
        if label is None:
            return cls(first, vote, None, None)
        sides: dict[str, JudgeChoice] = {"1": "A", "2": "B"} if first == "a" else {"1": "B", "2": "A"}
        a_label = "1" if first == "a" else "2"
        probability = None if shares is None else shares[a_label] + shares["tie"] / 2
        return cls(first, vote, sides.get(label, "tie"), probability)

    @property
    def took_first(self) -> bool | None:
        """Return whether the answer shown first was chosen; None for a tie or no verdict."""
        return None if self.choice in (None, "tie") else self.choice == self.first.upper()


@dataclass(frozen=True, slots=True)
class JudgeSummary:
    """The figures of a judge's verdicts and calls.

    `verdicts` = `pairs` * 2 * `votes` = `parsed` + `unparsable` + `identical` * 2 * `votes`, where `identical` counts
    pairs of equal answers, which are ties without a call. `consistent` is the share of the `both_orders` pairs and
    votes whose verdict is the same in both orders. `first_slot` is the share of their decided verdicts that chose the
    answer shown first, with its interval. `calls` counts distinct questions; `seconds` and `tokens` are their cost.
    `log_probs` counts verdicts whose probability is known. `made`, `cached` and `faults` count this run only.
    """

    pairs: int
    votes: int
    verdicts: int
    identical: int
    parsed: int
    unparsable: int
    unparsable_share: float
    cut: int
    both_orders: int
    consistent: float | None
    first_slot: float | None
    first_slot_interval: tuple[float, float] | None
    calls: int
    seconds: float
    tokens: int | None
    log_probs: int
    made: int
    cached: int
    faults: Mapping[str, int]
    warnings: tuple[str, ...] = ()

    def order(self) -> dict[str, Any]:
        """Return the figures that do not change when the same command runs again."""
        of_this_run = ("pairs", "votes", "made", "cached", "faults", "warnings")
        return {name: value for name, value in asdict(self).items() if name not in of_this_run}


def summarize(
    judged: Sequence[Sequence[JudgeVerdict]],
    votes: int,
    replies: Mapping[Call, Reply],
    made: int,
    faults: Sequence[str],
) -> JudgeSummary:
    """Return the summary of the verdicts on each pair [n] and of their replies; equal answers have no verdicts."""
    different = [verdicts for verdicts in judged if verdicts]
    flat = [verdict for verdicts in different for verdict in verdicts]
    unparsable = sum(verdict.choice is None for verdict in flat)
    units = [(number, unit) for number, verdicts in enumerate(different) for unit in _units(verdicts)]
    decided = [(v.took_first, number) for number, unit in units for v in unit if v.took_first is not None]
    slot = statistics.win_rate([float(took) for took, _ in decided], [str(n) for _, n in decided]) if decided else None
    used = [reply.tokens for reply in replies.values() if reply.tokens is not None]
    return JudgeSummary(
        pairs=len(judged),
        votes=votes,
        verdicts=len(judged) * 2 * votes,
        identical=len(judged) - len(different),
        parsed=len(flat) - unparsable,
        unparsable=unparsable,
        unparsable_share=unparsable / len(flat) if flat else 0.0,
        cut=sum(reply.cut for reply in replies.values()),
        both_orders=len(units),
        consistent=sum(first.choice == other.choice for _, (first, other) in units) / len(units) if units else None,
        first_slot=slot.win_rate if slot else None,
        first_slot_interval=slot.interval if slot else None,
        calls=len(replies),
        seconds=fsum(reply.seconds for reply in replies.values()),
        tokens=sum(used) if used else None,
        log_probs=sum(verdict.probability is not None for verdict in flat),
        made=made,
        cached=len(replies) - made,
        faults=dict(Counter(faults)),
    )


def _units(verdicts: Sequence[JudgeVerdict]) -> list[tuple[JudgeVerdict, JudgeVerdict]]:
    """Return the votes whose verdicts in both orders could be read."""
    by_vote: dict[int, list[JudgeVerdict]] = {}
    for verdict in verdicts:
        if verdict.choice is not None:
            by_vote.setdefault(verdict.vote, []).append(verdict)
    return [(unit[0], unit[1]) for unit in by_vote.values() if len(unit) == 2]


def warnings(summary: JudgeSummary, name: str, max_tokens: int) -> tuple[str, ...]:
    """Return the warnings about a judge's replies."""
    lines = []
    if summary.unparsable_share > MUCH_UNPARSABLE:
        replies = summary.parsed + summary.unparsable
        lines.append(
            f"WARNING: {name}: {summary.unparsable} of {replies} replies ({summary.unparsable_share:.1%}) have no "
            "readable verdict; they are kept and counted, and the win rate leaves them out"
        )
    if summary.cut:
        lines.append(f"{name}: {summary.cut} replies were cut off at max_tokens = {max_tokens}; raise it")
    return tuple(lines)
