"""Pairwise judging by a language model: every pair in both orders, once per vote, with all replies cached.

The judge does not know which side is shown first; its verdict about "response 1" is mapped back to the pair.
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean

from preferent.config.comparison_sections import JudgeSection
from preferent.data.judgment_outcomes import OUTCOMES
from preferent.data.judgments import AnswerPair
from preferent.data.types import Judgment
from preferent.errors import PlatformError
from preferent.evaluation.judges import judge_summary, verdict_parsing
from preferent.evaluation.judges.judge_summary import JudgeSummary, JudgeVerdict
from preferent.evaluation.judges.protocol import Call, Failure, Judge, Reply
from preferent.evaluation.judges.reply_cache import ReplyCache
from preferent.evaluation.judges.rubrics import First, Rubric
from preferent.runs import progress

ORDERS: tuple[First, First] = ("a", "b")
IN_A_ROW = 8
"""Number of consecutive failures after which no further calls are made."""


@dataclass(frozen=True, slots=True)
class JudgingResult:
    """One judgment per pair, in the order of the pairs, and their summary."""

    judgments: list[Judgment]
    summary: JudgeSummary


def judge_pairs(judge: JudgeSection, pairs: Sequence[AnswerPair], model: Judge, path: Path) -> JudgingResult:
    """Return the judgments of a judge that the recipe describes; `path` is the cache of its replies.

    Raises `PlatformError` if calls stay without a reply. No verdict is invented, and the replies received are kept.
    """
    rubric = Rubric.of(judge)
    rubric.check(pairs)
    questions_by_pair = [_questions(rubric, pair, judge.votes) for pair in pairs]
    calls = list(dict.fromkeys(call for questions in questions_by_pair for _, call in questions))
    with ReplyCache.open(path, model.identity) as cache:
        pending = _gather(judge, model, calls, cache)
    judged = [
        [_verdict(first, call, pending.replies[call]) for first, call in questions] for questions in questions_by_pair
    ]
    summary = judge_summary.summarize(judged, judge.votes, pending.replies, pending.made, pending.faults)
    summary = replace(summary, warnings=judge_summary.warnings(summary, judge.name, judge.max_tokens))
    print(*summary.warnings, sep="\n", end="\n" if summary.warnings else "", file=sys.stderr)
    judgments = [
        _judgment(judge, pair, verdicts, [pending.replies[call] for _, call in questions])
        for pair, verdicts, questions in zip(pairs, judged, questions_by_pair, strict=True)
    ]
    return JudgingResult(judgments, summary)


def _questions(rubric: Rubric, pair: AnswerPair, votes: int) -> list[tuple[First, Call]]:
    """Return the calls about a pair, by vote and order; none about equal answers."""
    if pair.response_a == pair.response_b:
        return []
    shown = {first: rubric.messages(pair, first) for first in ORDERS}
    return [(first, Call(shown[first], vote)) for vote in range(votes) for first in ORDERS]


@dataclass(slots=True)
class _PendingJudgments:
    """Replies by call, the number of calls made by this run, and their faults and failures."""

    replies: dict[Call, Reply]
    made: int = 0
    faults: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)


def _gather(judge: JudgeSection, model: Judge, calls: Sequence[Call], cache: ReplyCache) -> _PendingJudgments:
    """Return the replies to all calls; make those that are not in the cache, and add each reply as it arrives."""
    pending = _PendingJudgments({call: reply for call in calls if (reply := cache.get(call)) is not None})
    missing = [call for call in calls if call not in pending.replies]
    outcomes = model.ask(missing)
    in_a_row = 0
    with progress.bar(f"compare: {judge.name}", len(calls), len(pending.replies)) as bar, closing(outcomes):
        for call, outcome in outcomes:
            pending.faults += outcome.faults
            if isinstance(outcome, Failure):
                pending.failed.append(outcome)
                in_a_row += 1
                if in_a_row == IN_A_ROW:
                    break
            else:
                cache.add(call, outcome)
                pending.replies[call] = outcome
                pending.made += 1
                in_a_row = 0
            bar.update(len(pending.replies), faults=len(pending.faults))
    if pending.failed:
        raise _stopped(judge, pending, len(calls), cache.path)
    return pending


def _stopped(judge: JudgeSection, pending: _PendingJudgments, wanted: int, path: Path) -> PlatformError:
    last = pending.failed[-1]
    return PlatformError(
        f"compare.judges: {judge.name}: {len(pending.failed)} calls stayed without a reply after {judge.retries} "
        f"retries each (the last: {last.faults[-1] if last.faults else 'failed'}: {last.detail}); "
        f"{len(pending.replies)} of {wanted} replies are kept in {path}; run the same command again for the rest"
    )


def _verdict(first: First, call: Call, reply: Reply) -> JudgeVerdict:
    return JudgeVerdict.of(first, call.vote, verdict_parsing.parse(reply.text).label, reply.probabilities)


def _judgment(
    judge: JudgeSection, pair: AnswerPair, verdicts: Sequence[JudgeVerdict], replies: Sequence[Reply]
) -> Judgment:
    """Return the verdicts on a pair as one judgment: the side of the larger mean over the readable ones."""
    if not verdicts:
        verdicts = [JudgeVerdict(first, vote, "tie", 0.5) for vote in range(judge.votes) for first in ORDERS]
    outcomes = [OUTCOMES[verdict.choice] for verdict in verdicts if verdict.choice is not None]
    mean = fmean(outcomes) if outcomes else 0.5
    choice: judge_summary.JudgeChoice = "A" if mean > 0.5 else "B" if mean < 0.5 else "tie"
    return Judgment(
        id=pair.id,
        inference_instruction=pair.instruction,
        inference_context=pair.context,
        response_a=pair.response_a,
        response_b=pair.response_b,
        choice=choice,
        confidence=_confidence(choice, mean, verdicts),
        judge=judge.name,
        explanation=_explanation(choice, verdicts, replies),
        extra={"verdicts": [asdict(verdict) for verdict in verdicts]},
    )


def _confidence(choice: judge_summary.JudgeChoice, mean: float, verdicts: Sequence[JudgeVerdict]) -> float:
    """Return the choice's mean probability, or its share of the verdicts if one has no probability; 1/2 for a tie."""
    if choice == "tie":
        return 0.5
    known = [
        verdict.probability for verdict in verdicts if verdict.choice is not None and verdict.probability is not None
    ]
    if len(known) == sum(verdict.choice is not None for verdict in verdicts):
        mean = fmean(known)
    return max(mean if choice == "A" else 1 - mean, 0.5)


def _explanation(choice: judge_summary.JudgeChoice, verdicts: Sequence[JudgeVerdict], replies: Sequence[Reply]) -> str:
    """Return an explanation of the choice, preferably in the order in which A is response 1, or else the counts."""
    agreeing = [
        (verdict.first, reply.text)
        for verdict, reply in zip(verdicts, replies, strict=False)
        if verdict.choice == choice
    ]
    for first, text in sorted(agreeing, key=lambda reply: reply[0]):
        explanation = verdict_parsing.parse(text).explanation
        return explanation if first == "a" or not explanation else f"(Response 1 is B, response 2 is A.) {explanation}"
    if not replies:
        return "The responses are equal."
    return _counted(verdicts)


def _counted(verdicts: Sequence[JudgeVerdict]) -> str:
    """Return the counts of verdicts that do not agree, as "The verdicts differ: 1 A, 1 B."."""
    counts = {name: sum(verdict.choice == name for verdict in verdicts) for name in ("A", "B", "tie")}
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"The verdicts differ: {summary}." if summary else "No verdict could be read."
