"""A language model judges pairs: always in both orders, as often as it has votes, each question asked once for ever.

Which answer is shown first is known here and not told; what the judge says of "response 1" is turned back to the pair.
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
"""Calls that failed one after another, from which on no more are made: nobody is there."""


@dataclass(frozen=True, slots=True)
class JudgingResult:
    """The judgments, one a pair in the order of the pairs, and their summary."""

    judgments: list[Judgment]
    summary: JudgeSummary


def hear(judge: JudgeSection, pairs: Sequence[AnswerPair], juror: Judge, path: Path) -> JudgingResult:
    """The verdicts of a judge that the recipe describes; `path` is where its replies are kept.

    Raises `PlatformError` where calls stay without a reply: no verdict is made up, and none that came is lost.
    """
    rubric = Rubric.of(judge)
    rubric.check(pairs)
    questions_by_pair = [_questions(rubric, pair, judge.votes) for pair in pairs]
    calls = list(dict.fromkeys(call for questions in questions_by_pair for _, call in questions))
    with ReplyCache.open(path, juror.identity) as ledger:
        pending = _gather(judge, juror, calls, ledger)
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
    """What is asked about a pair, by vote and order; of equal answers nothing."""
    if pair.response_a == pair.response_b:
        return []
    shown = {first: rubric.messages(pair, first) for first in ORDERS}
    return [(first, Call(shown[first], vote)) for vote in range(votes) for first in ORDERS]


@dataclass(slots=True)
class _PendingJudgments:
    """Replies by call, how many were made now, and what went wrong on the way."""

    replies: dict[Call, Reply]
    made: int = 0
    faults: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)


def _gather(judge: JudgeSection, juror: Judge, calls: Sequence[Call], ledger: ReplyCache) -> _PendingJudgments:
    """The replies to all calls; those that the ledger does not have are asked for, and kept as they come."""
    pending = _PendingJudgments({call: reply for call in calls if (reply := ledger.get(call)) is not None})
    missing = [call for call in calls if call not in pending.replies]
    asking = juror.ask(missing)
    in_a_row = 0
    with progress.bar(f"compare: {judge.name}", len(calls), len(pending.replies)) as bar, closing(asking):
        for call, came in asking:
            pending.faults += came.faults
            if isinstance(came, Failure):
                pending.failed.append(came)
                in_a_row += 1
                if in_a_row == IN_A_ROW:
                    break
            else:
                ledger.add(call, came)
                pending.replies[call] = came
                pending.made += 1
                in_a_row = 0
            bar.update(len(pending.replies), faults=len(pending.faults))
    if pending.failed:
        raise _stopped(judge, pending, len(calls), ledger.path)
    return pending


def _stopped(judge: JudgeSection, pending: _PendingJudgments, wanted: int, path: Path) -> PlatformError:
    last = pending.failed[-1]
    return PlatformError(
        f"compare.judges: {judge.name}: {len(pending.failed)} calls stayed without a reply after {judge.retries} "
        f"further tries each (the last: {last.faults[-1] if last.faults else 'failed'}: {last.detail}); "
        f"{len(pending.replies)} of {wanted} replies are kept in {path}, and the same command goes on from there"
    )


def _verdict(first: First, call: Call, reply: Reply) -> JudgeVerdict:
    return JudgeVerdict.of(first, call.vote, verdict_parsing.parse(reply.text).label, reply.probabilities)


def _judgment(
    judge: JudgeSection, pair: AnswerPair, verdicts: Sequence[JudgeVerdict], replies: Sequence[Reply]
) -> Judgment:
    """The verdicts on a pair as one judgment: the side of the larger mean over those that could be read."""
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
    """The choice's mean probability where every verdict has one, else the share of the verdicts; a tie's is 1/2."""
    if choice == "tie":
        return 0.5
    known = [
        verdict.probability for verdict in verdicts if verdict.choice is not None and verdict.probability is not None
    ]
    if len(known) == sum(verdict.choice is not None for verdict in verdicts):
        mean = fmean(known)
    return max(mean if choice == "A" else 1 - mean, 0.5)


def _explanation(choice: judge_summary.JudgeChoice, verdicts: Sequence[JudgeVerdict], replies: Sequence[Reply]) -> str:
    """What was said for the choice, if it can be in the order in which A is response 1; else how the verdicts fell."""
    agreeing = [
        (verdict.first, reply.text)
        for verdict, reply in zip(verdicts, replies, strict=False)
        if verdict.choice == choice
    ]
    for first, text in sorted(agreeing, key=lambda each: each[0]):
        explanation = verdict_parsing.parse(text).explanation
        return explanation if first == "a" or not explanation else f"(Response 1 is B, response 2 is A.) {explanation}"
    if not replies:
        return "The responses are equal."
    return _fell(verdicts)


def _fell(verdicts: Sequence[JudgeVerdict]) -> str:
    """How verdicts that do not agree fell, as "The verdicts differ: 1 A, 1 B."."""
    counts = {name: sum(verdict.choice == name for verdict in verdicts) for name in ("A", "B", "tie")}
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"The verdicts differ: {summary}." if summary else "No verdict could be read."
