"""Export votes to files: judgments for the comparison, preferences to train on, and the rest by kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from preferent import files
from preferent.data import judgments
from preferent.data.formats import row_writer
from preferent.data.types import Choice, Judgment, Preference
from preferent.labeling import assignment, events, selection, thumb_exports
from preferent.labeling.database import Store
from preferent.labeling.events import AnnotatorHistory, HumanVote
from preferent.labeling.questions import Question, other
from preferent.labeling.thumb_exports import ThumbExports

Row = dict[str, Any]
JUDGE = "people"
Name = Literal["judgments", "preferences", "ties", "skips", "gold", "flags"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(slots=True)
class LabelExports:
    """The rows of each file. Votes = preferences + ties + skips + gold; judgments = preferences + ties + identical."""

    rows: dict[Name, list[Row]] = field(default_factory=lambda: {name: [] for name in NAMES})
    identical: int = 0

    def __str__(self) -> str:
        count = {name: len(rows) for name, rows in self.rows.items()}
        bad = sum(row["both_bad"] for row in self.rows["ties"])
        votes = count["preferences"] + count["ties"] + count["skips"] + count["gold"]
        return (
            f"{votes} votes: {count['preferences']} preferences, {count['ties']} ties ({bad} both bad), "
            f"{count['skips']} skips, {count['gold']} on control questions; {count['judgments']} judgments, "
            f"{self.identical} of them ties of identical answers, which are not asked; {count['flags']} flags"
        )


def export(
    settings: Mapping[str, Any], questions: Sequence[Question], histories: Mapping[str, AnnotatorHistory]
) -> LabelExports:
    """Return the rows of all files, in the order of the questions and of the annotators' names."""
    exports = LabelExports()
    names = sorted(histories)
    passed = passed_identical_pairs(settings, questions, histories)
    answered = {key for history in histories.values() for key in history.votes}
    real = sum(question.key in answered and question.gold is None for question in questions)
    for question in selection.with_probabilities(settings, questions, real):
        key = question.key
        for name in names:
            history = histories[name]
            if key in history.flags:
                exports.rows["flags"].append(_flag(question, name, history.flags[key]))
            if key in history.votes:
                _add(exports, question, name, history.votes[key], key in history.flags)
            elif key in passed.get(name, ()):
                exports.identical += 1
                exports.rows["judgments"].append(_judgment(question, name, None))
    return exports


def _add(exports: LabelExports, question: Question, annotator: str, vote: HumanVote, flagged: bool) -> None:
    """Add a vote to the file that it belongs to, and to the judgments if it is one."""
    row = _row(question, annotator, vote) | {"flagged": flagged}
    if question.gold is not None:
        gold = "tie" if question.gold == "tie" else 0 if question.gold == vote.first.upper() else 1
        exports.rows["gold"].append(row | {"gold": gold, "right": vote.right(question)})
    elif vote.verdict is None:
        exports.rows["skips"].append(row)
    else:
        exports.rows["preferences" if vote.side else "ties"].append(row)
        exports.rows["judgments"].append(_judgment(question, annotator, vote) | {"flagged": flagged})


def _row(question: Question, annotator: str, vote: HumanVote) -> Row:
    """Return a vote as a preference row. Candidate 0 is the answer that was shown left; a skip has no choice."""
    second = other(vote.first)
    choice: Choice = "tie" if vote.side is None else 0 if vote.side == vote.first else 1
    extra = {
        "model_0": question.model(vote.first),
        "model_1": question.model(second),
        "first": vote.first,
        "both_bad": vote.choice == "both_bad",
        "note": vote.note,
        "seconds": vote.seconds,
        "at": vote.at,
        "probability": question.probability,
    }
    candidates = question.answer(vote.first), question.answer(second)
    extra |= _provenance(question, vote)
    kept = {f"source.{name}" if name in extra else name: value for name, value in question.extra.items()}
    prompt, strength = question.prompt, None if vote.strength is None else float(vote.strength)
    row = row_writer.row(Preference(prompt, *candidates, choice, question.id, strength, annotator, kept | extra))
    assert row is not None, "every row can be written as GCPC's"
    if vote.choice == "skip":
        row["choice"] = None
    return row


def _provenance(question: Question, vote: HumanVote | None) -> Row:
    """Return the verdict that the source already had, and the tool that the vote was imported from."""
    columns = {"imported": question.imported, "origin": vote.origin if vote else None}
    return {name: value for name, value in columns.items() if value}


def _judgment(question: Question, annotator: str, vote: HumanVote | None) -> Row:
    """Return a judgment as a row; without a vote, the tie of two identical answers."""
    verdict = vote.verdict if vote else "tie"
    assert verdict is not None and verdict != "up" and verdict != "down", "a skip and a thumb are not judgments"
    details: Row = {
        "model_a": question.model_a,
        "model_b": question.model_b,
        "annotator": annotator,
        "both_bad": vote is not None and vote.choice == "both_bad",
        "strength": vote.strength if vote else None,
        "note": vote.note if vote else "",
        "flagged": False,
        "seconds": vote.seconds if vote else None,
        "first": vote.first if vote else "a",
        "probability": question.probability,
        "gold": False,
        "identical": vote is None,
    }
    judgment = Judgment(
        id=question.id,
        inference_instruction=question.instruction,
        inference_context=question.context,
        response_a=question.answer("a"),
        response_b=question.answer("b"),
        choice=verdict,
        confidence=0.5 if verdict == "tie" else 1.0,
        judge=JUDGE,
        explanation=vote.note if vote else "",
    )
    return {name: getattr(judgment, name) for name in judgments.COLUMNS} | details | _provenance(question, vote)


def _flag(question: Question, annotator: str, note: str) -> Row:
    answers = question.answer("a"), question.answer("b")
    pair = Preference(question.prompt, *answers, "tie", question.id, annotator=annotator)
    row = row_writer.row(pair, "gcpc") or {}
    return {name: value for name, value in row.items() if name != "choice"} | {"note": note}


def passed_identical_pairs(
    settings: Mapping[str, Any], questions: Sequence[Question], histories: Mapping[str, AnnotatorHistory]
) -> dict[str, set[str]]:
    """Return the identical pairs that each annotator has passed: those before the last question that they answered."""
    same = {question.key for question in questions if question.identical}
    answered: dict[str, set[str]] = {}
    for name, history in histories.items():
        for key in history.votes:
            answered.setdefault(key, set()).add(name)
    passed = {}
    for name, keys in assignment.queues(settings, questions, answered).items():
        votes = histories[name].votes if name in histories else {}
        last = max((place for place, key in enumerate(keys) if key in votes), default=0)
        left = [key for key in keys if key not in votes and key not in same]
        passed[name] = {key for key in (keys[:last] if left else keys if votes else []) if key in same}
    return passed


Exports = LabelExports | ThumbExports


def collect(store: Store) -> Exports:
    """Return the rows of all files for the current state of a store."""
    return of(store.settings(), store.questions(), events.histories(store.events()))


def of(
    settings: Mapping[str, Any], questions: Sequence[Question], histories: Mapping[str, AnnotatorHistory]
) -> Exports:
    """Return the rows of all files, of votes on pairs or of thumbs, as the settings say."""
    if settings.get("asks") == "thumbs":
        return thumb_exports.export(questions, histories)
    return export(settings, questions, histories)


def write(exports: Exports, folder: Path) -> None:
    """Write all files, each whole or not at all; they hold sides, so only their owner may read them."""
    for name, rows in exports.rows.items():
        files.write_jsonl(folder / f"{name}.jsonl", rows, private=True)
