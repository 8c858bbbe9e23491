"""Import pairs and votes from exports of Argilla (records as JSON) and Label Studio (JSON).

A record of Argilla has `fields`, and `responses` by question, each with `value` and `user_id`. The value is a label, or
a ranking of `{"value", "rank"}`. A task of Label Studio has `data`, and `annotations` with a `result` of type
`pairwise` (`selected` is left, the first answer, or right) or `choices`.
"""

import json
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

from preferent.data.formats import row_sources
from preferent.data.formats.answer_names import Columns, choice_of, columns_of, readable_votes
from preferent.data.types import Message, Prompt, digest
from preferent.errors import DataError, PlatformError
from preferent.labeling import questions
from preferent.labeling.events import Event
from preferent.labeling.questions import Question

Row = Mapping[str, Any]
SKIPPED = "", ""
"""The control of a cancelled annotation."""
LONGEST_ANSWER = 1e9
"""Seconds, about thirty years."""


@dataclass(frozen=True, slots=True)
class ImportedAnswer:
    """One person's answer, as the file has it."""

    annotator: str
    value: object
    seconds: float | None = None
    at: float = 0.0


@dataclass(slots=True)
class LabelImport:
    """The content of a file: questions, votes on them, and how often each value that is not a vote occurred.

    Of several votes by one person on one question, the latest counts; `repeated` counts the others. Votes without a
    name count as those of different people.
    """

    questions: list[Question]
    votes: list[Event]
    unread: Counter[str]
    repeated: int = 0


def is_export(path: Path) -> bool:
    """Return whether a file holds records of Argilla or tasks of Label Studio."""
    try:
        return any(bool(_kind(row)) for _, row in islice(row_sources.rows(str(path)), 1))
    except PlatformError:
        return False


def _kind(row: object) -> str:
    if isinstance(row, dict) and isinstance(row.get("fields"), dict) and "responses" in row:
        return "argilla"
    return "label-studio" if isinstance(row, dict) and isinstance(row.get("data"), dict) else ""


def read(path: Path, columns: Columns | None = None) -> LabelImport:
    """Read pairs and votes from an export. `columns` name the prompt and the answers; they are otherwise detected."""
    rows = _rows(path)
    kinds = {_kind(row) for row in rows}
    if len(kinds) != 1 or "" in kinds:
        raise DataError(
            f"{path}: holds neither records of Argilla (fields, responses) nor tasks of Label Studio (data, "
            "annotations); write preference rows as one JSON object per line"
        )
    kind = kinds.pop()
    content = [row["fields"] if kind == "argilla" else row["data"] for row in rows]
    columns = columns or columns_of(content[0], path)
    answers = (_argilla if kind == "argilla" else _label_studio)(rows, columns, path)
    imported, latest = LabelImport([], [], Counter()), dict[tuple[str, str], Event]()
    unnamed = Counter[str]()
    for number, (row, fields, row_answers) in enumerate(zip(rows, content, answers, strict=True), start=1):
        question = _question(row, fields, columns, f"{path}: record {number}")
        imported.questions.append(question)
        for answer in row_answers:
            choice = choice_of(answer.value, columns)
            if choice is None:
                imported.unread[json.dumps(answer.value, ensure_ascii=False)[:60]] += 1
                continue
            unnamed[question.key] += not answer.annotator
            who = f"{kind} {answer.annotator or f'unnamed {unnamed[question.key]}'}"
            body = {"choice": choice, "first": "a", "strength": None, "note": "", "seconds": answer.seconds}
            vote = Event(who, digest("import", question.key), "vote", question.key, body | {"origin": kind}, answer.at)
            earlier = latest.get((who, question.key))
            imported.repeated += earlier is not None
            latest[who, question.key] = earlier if earlier and earlier.at > vote.at else vote
    imported.votes.extend(latest.values())
    return imported


def _rows(path: Path) -> list[Row]:
    """Read the objects in a file: a JSON list of them, or one per line."""
    rows: list[Row] = [row for _, row in row_sources.objects(str(path))]
    if not rows:
        raise DataError(f"{path}: holds no records")
    return rows


def _question(row: Row, fields: Row, columns: Columns, place: str) -> Question:
    raw_prompt, a, b = (fields.get(name) for name in columns)
    if not isinstance(a, str) or not isinstance(b, str):
        raise DataError(f"{place}: {columns[1]} and {columns[2]} must be texts; name other fields with --columns")
    if isinstance(raw_prompt, list):
        turns = tuple(
            Message(str(turn.get("role")), str(turn.get("content")))
            for turn in _objects(raw_prompt, f"{place}: {columns[0]}")
        )
        prompt = Prompt(messages=turns)
    else:
        prompt = Prompt(input_text="" if raw_prompt is None else str(raw_prompt))
    id = str(row.get("id") or digest(prompt.key, a, b))
    return Question(id, prompt, a, b, columns[1], columns[2], context=questions.text(prompt))


def _argilla(rows: Sequence[Row], columns: Columns, path: Path) -> list[list[ImportedAnswer]]:
    """Return the answers to each record, of the question whose values most often name one of the two answers.

    If no question is about the pair, the answers to all are kept under the question's name, which makes them unreadable
    as votes.
    """
    records = [_responses(row["responses"], f"{path}: record {number}") for number, row in enumerate(rows, start=1)]
    values: dict[str, list[object]] = {}
    for responses in records:
        for question, answers in responses.items():
            values.setdefault(question, []).extend(answer.value for answer in answers)
    readable = {question: readable_votes(question, answers, columns) for question, answers in values.items()}
    chosen = max(readable, key=lambda question: readable[question], default="")
    if readable.get(chosen):
        return [responses.get(chosen, []) for responses in records]
    return [
        [
            replace(answer, value={question: answer.value})
            for question, answers in responses.items()
            for answer in answers
        ]
        for responses in records
    ]


def _responses(responses: object, place: str) -> dict[str, list[ImportedAnswer]]:
    """Return the answers to each question. In Argilla 1, each response is one user's answers to all questions."""
    answers: dict[str, list[ImportedAnswer]] = {}
    if isinstance(responses, list):
        for response in _objects(responses, f"{place}: responses"):
            who, status = _annotator(response.get("user_id")), response.get("status") or "submitted"
            for question, answer in _object(response.get("values"), f"{place}: values").items():
                value = _object(answer, f"{place}: {question}").get("value")
                answers.setdefault(question, []).append(
                    ImportedAnswer(who, value if status == "submitted" else {status: value})
                )
        return answers
    for question, rows in _object(responses, f"{place}: responses").items():
        answers[question] = [
            ImportedAnswer(_annotator(row.get("user_id")), row.get("value"))
            for row in _objects(rows, f"{place}: responses to {question}")
        ]
    return answers


def _label_studio(rows: Sequence[Row], columns: Columns, path: Path) -> list[list[ImportedAnswer]]:
    """Return the answers to each task, of one control: a pairwise one, or the choices most often readable as votes.

    The answers of other controls are kept under the control's name, which makes them unreadable as votes.
    """
    tasks = [list(_results(row, f"{path}: record {number}")) for number, row in enumerate(rows, start=1)]
    values: dict[tuple[str, str], list[object]] = {}
    for control, answer in chain.from_iterable(tasks):
        values.setdefault(control, []).append(answer.value)
    readable = {control: readable_votes(control[1], answers, columns) for control, answers in values.items()}
    controls = [control for control, count in readable.items() if count and control != SKIPPED]
    chosen = max(controls, key=lambda control: (control[0] == "pairwise", readable[control]), default=SKIPPED)
    return [
        [
            answer if control in (chosen, SKIPPED) else replace(answer, value={control[1]: answer.value})
            for control, answer in answers
        ]
        for answers in tasks
    ]


def _results(row: Row, place: str) -> Iterator[tuple[tuple[str, str], ImportedAnswer]]:
    """Yield the answers to a task, each with the type and name of its control. A cancelled annotation is a skip."""
    for annotation in _objects(row.get("annotations"), f"{place}: annotations"):
        who = annotation.get("completed_by")
        name = _annotator(who.get("id", who.get("email")) if isinstance(who, dict) else who)
        rest = _seconds(annotation.get("lead_time"), place), _timestamp(annotation.get("created_at"))
        if annotation.get("was_cancelled"):
            yield SKIPPED, ImportedAnswer(name, "skip", *rest)
            continue
        for result in _objects(annotation.get("result"), f"{place}: result"):
            kind, value = str(result.get("type")), _object(result.get("value"), f"{place}: value")
            if kind in ("pairwise", "choices"):
                labels = value.get("selected" if kind == "pairwise" else "choices")
                label = labels[0] if isinstance(labels, list) and len(labels) == 1 else labels
                yield (kind, str(result.get("from_name"))), ImportedAnswer(name, label, *rest)


def _annotator(value: object) -> str:
    """Return who answered; empty if the file does not say."""
    return "" if value is None else str(value)


def _object(value: object, place: str) -> Row:
    """Return a JSON object of the export; an empty one for null."""
    if not isinstance(value, dict | None):
        raise DataError(f"{place}: must be an object, not {json.dumps(value, ensure_ascii=False)[:60]}")
    return value or {}


def _objects(value: object, place: str) -> list[Row]:
    """Return a list of JSON objects of the export; an empty one for null."""
    if not isinstance(value, list | None) or not all(isinstance(row, dict) for row in value or []):
        raise DataError(f"{place}: must be a list of objects, not {json.dumps(value, ensure_ascii=False)[:60]}")
    return value or []


def _seconds(value: object, place: str) -> float | None:
    """Return how long an answer took; None if the file does not say."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_ANSWER:
        raise DataError(f"{place}: lead_time is {reprlib.repr(value)}, not a number of seconds")
    return float(value)


def _timestamp(text: object) -> float:
    """Return a time in seconds since 1970; 0 if it cannot be parsed."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
