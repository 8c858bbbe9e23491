"""Pairs and votes out of exports of Argilla (records as JSON) and Label Studio (JSON).

Argilla: `fields`, and `responses` by question, each with `value` and `user_id`; the value is a label, or a ranking of
`{"value", "rank"}`. Label Studio: `data`, and `annotations` with a `result` of type `pairwise` (`selected` is left or
right, left being the first answer) or `choices`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from preferent.data.types import Message, Prompt, digest
from preferent.errors import DataError
from preferent.labeling import questions
from preferent.labeling.events import Choice, Event
from preferent.labeling.questions import Question

Row = Mapping[str, Any]
Columns = tuple[str, str, str]
PROMPTS = ("prompt", "instruction", "question", "input", "context", "query", "chat", "messages")
NUMBERED = re.compile(r"(.*?)[-_ ]?(1|2|a|b|0|left|right)", re.IGNORECASE)
ENDINGS = ("1", "2"), ("a", "b"), ("0", "1"), ("left", "right")
WORDS = ("", "response", "answer", "model", "option", "output", "text", "reply", "candidate")
TIES = ("tie", "draw", "same", "equal", "similar", "both", "bothgood", "bothareequal", "nopreference")
BAD = ("bothbad", "bothbadtie", "neither", "none")
SKIPPED = "", ""
"""Stands for the control of an annotation that was cancelled."""
SKIPS = ("skip", "unsure", "cantsay", "cannotsay", "notsure")


@dataclass(frozen=True, slots=True)
class ImportedAnswer:
    """What somebody said, as it stands in the file."""

    annotator: str
    value: object
    seconds: float | None = None
    at: float = 0.0


@dataclass(slots=True)
class Import:
    """What was found in a file: questions, votes on them, and values that are no vote, by how often they came.

    Of several votes of one person on one question the latest stands; `repeated` counts the others. Where nobody is
    named, each vote on a question is another person's.
    """

    questions: list[Question]
    votes: list[Event]
    unread: Counter[str]
    repeated: int = 0


def is_foreign(path: Path) -> bool:
    """Whether a file is a list of Argilla's records or of Label Studio's tasks."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            first = next((line.strip() for line in file if line.strip()), "")
        return first.startswith("[") or bool(_kind(json.loads(first)))
    except (OSError, ValueError):
        return False


def _kind(row: object) -> str:
    if isinstance(row, dict) and isinstance(row.get("fields"), dict) and "responses" in row:
        return "argilla"
    return "label-studio" if isinstance(row, dict) and isinstance(row.get("data"), dict) else ""


def read(path: Path, columns: Columns | None = None) -> Import:
    """The pairs and votes in an export; `columns` are the names of prompt and answers, where names do not tell."""
    rows = _rows(path)
    kinds = {_kind(row) for row in rows}
    if len(kinds) != 1 or "" in kinds:
        raise DataError(
            f"{path}: neither Argilla's records (fields, responses) nor Label Studio's tasks (data, annotations); "
            "rows of preferences are written as one JSON object a line"
        )
    kind = kinds.pop()
    content = [row["fields"] if kind == "argilla" else row["data"] for row in rows]
    columns = columns or _columns(content[0], path)
    said = (_argilla if kind == "argilla" else _label_studio)(rows, columns, path)
    found, standing = Import([], [], Counter()), dict[tuple[str, str], Event]()
    unnamed = Counter[str]()
    for number, (row, fields, answers) in enumerate(zip(rows, content, said, strict=True), start=1):
        asked = _question(row, fields, columns, f"{path}: record {number}")
        found.questions.append(asked)
        for answer in answers:
            choice = _choice(answer.value, columns)
            if choice is None:
                found.unread[json.dumps(answer.value, ensure_ascii=False)[:60]] += 1
                continue
            unnamed[asked.key] += not answer.annotator
            who = f"{kind} {answer.annotator or f'unnamed {unnamed[asked.key]}'}"
            body = {"choice": choice, "first": "a", "strength": None, "note": "", "seconds": answer.seconds}
            vote = Event(who, digest("import", asked.key), "vote", asked.key, body | {"origin": kind}, answer.at)
            earlier = standing.get((who, asked.key))
            found.repeated += earlier is not None
            standing[who, asked.key] = earlier if earlier and earlier.at > vote.at else vote
    found.votes.extend(standing.values())
    return found


def _rows(path: Path) -> list[Row]:
    """The objects in a file: a JSON list of them, or one a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(row) for row in text.split("\n") if row.strip()]
        )
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not value or not all(isinstance(row, dict) for row in value):
        raise DataError(f"{path}: holds no list of objects")
    return list(value)


def _columns(fields: Row, path: Path) -> Columns:
    """The names of prompt and answers: two texts whose names differ in a last 1 and 2, or a and b; and a prompt."""
    names = {name: match.groups() for name in fields if (match := NUMBERED.fullmatch(name))}
    pairs = [
        (one, other)
        for one, (stem, end) in names.items()
        for other, (stem_too, end_too) in names.items()
        if stem == stem_too and (end.lower(), end_too.lower()) in ENDINGS
    ]
    prompts = [name for name in PROMPTS if name in fields]
    if len(pairs) == 1 and not prompts:
        prompts = [name for name, value in fields.items() if name not in pairs[0] and isinstance(value, str)]
    if len(pairs) != 1 or not prompts:
        raise DataError(
            f"{path}: which fields are the prompt and the two answers? There are {', '.join(fields)}; "
            "name them with --columns PROMPT,A,B"
        )
    return prompts[0], *pairs[0]


def _question(row: Row, fields: Row, columns: Columns, place: str) -> Question:
    prompt, a, b = (fields.get(name) for name in columns)
    if not isinstance(a, str) or not isinstance(b, str):
        raise DataError(f"{place}: {columns[1]} and {columns[2]} are to be two texts; see --columns")
    if isinstance(prompt, list):
        turns = tuple(
            Message(str(turn.get("role")), str(turn.get("content")))
            for turn in _objects(prompt, f"{place}: {columns[0]}")
        )
        asked = Prompt(messages=turns)
    else:
        asked = Prompt(input_text="" if prompt is None else str(prompt))
    id = str(row.get("id") or digest(asked.key, a, b))
    return Question(id, asked, a, b, columns[1], columns[2], context=questions.text(asked))


def _argilla(rows: Sequence[Row], columns: Columns, path: Path) -> list[list[ImportedAnswer]]:
    """Who said what of each record, to the question whose answers are most often one of the two answers."""
    said = [_responses(row["responses"], f"{path}: record {number}") for number, row in enumerate(rows, start=1)]
    readable = Counter(
        name
        for answers in said
        for name, given in answers.items()
        for answer in given
        if _choice(answer.value, columns) is not None
    )
    asked = readable.most_common(1)[0][0] if readable else ""
    return [answers.get(asked, []) for answers in said]


def _responses(responses: object, place: str) -> dict[str, list[ImportedAnswer]]:
    """The answers to each question; in Argilla 1 the responses are a list, each by one user to all questions."""
    found: dict[str, list[ImportedAnswer]] = {}
    if isinstance(responses, list):
        for response in _objects(responses, f"{place}: responses"):
            who, status = _name(response.get("user_id")), response.get("status") or "submitted"
            for name, given in _object(response.get("values"), f"{place}: values").items():
                value = _object(given, f"{place}: {name}").get("value")
                found.setdefault(name, []).append(
                    ImportedAnswer(who, value if status == "submitted" else {status: value})
                )
        return found
    for name, given in _object(responses, f"{place}: responses").items():
        answers = _objects(given, f"{place}: responses to {name}")
        found[name] = [ImportedAnswer(_name(each.get("user_id")), each.get("value")) for each in answers]
    return found


def _label_studio(rows: Sequence[Row], columns: Columns, path: Path) -> list[list[ImportedAnswer]]:
    """Who said what of each task, by one control of the file: a pairwise one, or the choices most often read as a vote.

    What was said by other controls stands under their names, and is no vote.
    """
    said = [list(_results(row, f"{path}: record {number}")) for number, row in enumerate(rows, start=1)]
    readable = Counter(
        control for results in said for control, answer in results if _choice(answer.value, columns) is not None
    )
    controls = [control for control in readable if control != SKIPPED]
    asked = max(controls, key=lambda control: (control[0] == "pairwise", readable[control]), default=SKIPPED)
    return [
        [
            answer if control in (asked, SKIPPED) else replace(answer, value={control[1]: answer.value})
            for control, answer in results
        ]
        for results in said
    ]


def _results(row: Row, place: str) -> Iterator[tuple[tuple[str, str], ImportedAnswer]]:
    """The answers to a task, each with the type and the name of its control; an annotation cancelled is a skip."""
    for annotation in _objects(row.get("annotations"), f"{place}: annotations"):
        who = annotation.get("completed_by")
        name = _name(who.get("id", who.get("email")) if isinstance(who, dict) else who)
        rest = annotation.get("lead_time"), _when(annotation.get("created_at"))
        if annotation.get("was_cancelled"):
            yield SKIPPED, ImportedAnswer(name, "skip", *rest)
            continue
        for result in _objects(annotation.get("result"), f"{place}: result"):
            kind, value = str(result.get("type")), _object(result.get("value"), f"{place}: value")
            if kind in ("pairwise", "choices"):
                given = value.get("selected" if kind == "pairwise" else "choices")
                one = given[0] if isinstance(given, list) and len(given) == 1 else given
                yield (kind, str(result.get("from_name"))), ImportedAnswer(name, one, *rest)


def _name(value: object) -> str:
    """Who answered; empty where the file does not say."""
    return "" if value is None else str(value)


def _object(value: object, place: str) -> Row:
    """A JSON object of the export, or an empty one where there is none."""
    if not isinstance(value, dict | None):
        raise DataError(f"{place}: is to be an object, not {json.dumps(value, ensure_ascii=False)[:60]}")
    return value or {}


def _objects(value: object, place: str) -> list[Row]:
    """A list of JSON objects, or an empty one where there is none."""
    if not isinstance(value, list | None) or not all(isinstance(each, dict) for each in value or []):
        raise DataError(f"{place}: is to be a list of objects, not {json.dumps(value, ensure_ascii=False)[:60]}")
    return value or []


def _when(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0


def _choice(value: object, columns: Columns) -> Choice | None:
    """The vote that a label, or a ranking, is; None where it is none. The first answer counts as the left one."""
    if isinstance(value, list):
        ranks = {str(each.get("value")): each.get("rank") for each in value if isinstance(each, dict)}
        one, other = ranks.get(columns[1]), ranks.get(columns[2])
        if not isinstance(one, int) or not isinstance(other, int):
            return None
        return "tie" if one == other else "left" if one < other else "right"
    if isinstance(value, dict):
        return None
    said = _plain(str(value))
    fixed: Sequence[tuple[Choice, Sequence[str]]] = (("tie", TIES), ("both_bad", BAD), ("skip", SKIPS))
    for choice, words in fixed:
        if said in words:
            return choice
    sides = [{_plain(column), *_names(column, place)} for place, column in enumerate(columns[1:])]
    found = [said in side or re.sub("(is)?better$", "", said) in side for side in sides]
    return None if found[0] == found[1] else "left" if found[0] else "right"


def _names(column: str, place: int) -> set[str]:
    """What else the first or the second answer may be called: by place, letter or number, after a word or alone."""
    match = NUMBERED.fullmatch(column)
    end = match.group(2).lower() if match else ""
    numbers = {end} if end.isdigit() else {("1", "2")[place]}
    ends = numbers | {("a", "b")[place], ("left", "right")[place], ("first", "second")[place]}
    return {word + end for word in WORDS for end in ends}


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
