"""Answers to prompts in files, whoever wrote them: read in any format, and joined by id or by prompt.

A row says how it is written: GCPC's prediction rows (ours), AlpacaEval's `model_outputs.json`, Arena-Hard's answers, or
an object or CSV row whose columns are called as people call them, or as they are named.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preferent import sheet
from preferent.error import DataError, PlatformError
from preferent.record import Message, Prompt, digest
from preferent.sheet import Row

CALLED = {
    "id": ("id", "uid", "question_id"),
    "prompt": ("prompt", "input_text", "instruction", "question"),
    "answer": ("answer", "prediction", "output", "response", "completion", "output_text"),
    "reference": ("reference", "target", "ground_truth"),
}
"""What others call the columns that we look for, the first that a row has."""
OPTIONAL = ("tokens", "ended", "kl", "kl_k1", "scores")


@dataclass(frozen=True, slots=True)
class Columns:
    """What columns are called, where not as in `CALLED`; each of `tags` is a column to slice by.

    A name holds for the files whose first row has it.
    """

    id: str | None = None
    prompt: str | None = None
    answer: str | None = None
    reference: str | None = None
    tags: tuple[str, ...] = ()

    def among(self, row: Row) -> "Columns":
        """The names that a row has."""
        one = {name: column for name in CALLED if (column := getattr(self, name)) in row}
        return Columns(**one, tags=tuple(column for column in self.tags if column in row))

    def missing(self, rows: Sequence[Row]) -> list[str]:
        """The names that none of these rows has."""
        every = [*(getattr(self, name) for name in CALLED), *self.tags]
        return [column for column in every if column is not None and not any(column in row for row in rows)]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a prompt; what a foreign file does not say is None, and an unknown prompt is empty.

    `kl` and `kl_k1` are nats an answer; `asked` is the prompt as the data have it, where it is known. Where it is the
    best of several answers, `scores` are theirs. `tags` say what slices it belongs to.
    """

    id: str
    prompt: str
    reference: str
    text: str
    tokens: int | None = None
    ended: bool | None = None
    kl: float | None = None
    kl_k1: float | None = None
    scores: Sequence[float] | None = None
    asked: Prompt | None = None
    tags: tuple[str, ...] = ()


Answers = Mapping[str, Sequence[Answer]]
"""Answers to the same prompts in the same order, [n], by side."""


def predictions(path: Path) -> Path:
    """The prediction file that a path means: itself, or the `text.jsonl` in it."""
    file = path / "text.jsonl" if path.is_dir() else path
    if not file.exists():
        raise PlatformError(f"{file}: no such prediction file; `preferent infer` makes one")
    return file


def read(path: Path, columns: Columns | None = None) -> list[Answer]:
    """The answers in a file. Rows without an id are known by their prompt, the second of one prompt as its second."""
    named = (columns or Columns()).among(first(path))
    answers: list[Answer] = []
    prompts: Counter[str] = Counter()
    ids: dict[str, str] = {}
    for place, row in sheet.rows(path):
        answer = _answer(row, place, named)
        if not answer.id:
            prompts[answer.prompt] += 1
            turn = prompts[answer.prompt]
            answer = replace(answer, id=digest(answer.prompt) + (f"-{turn}" if turn > 1 else ""))
        if answer.id in ids:
            raise DataError(
                f"{place}: has the id {answer.id}, as the row at {ids[answer.id]}; give each row an id of its own"
            )
        ids[answer.id] = place
        answers.append(answer)
    if not answers:
        raise DataError(f"{path}: holds no predictions")
    return answers


def first(path: Path) -> Row:
    """The first row of a file, as it stands there; an empty one where it has none."""
    return next((row for _, row in sheet.rows(path)), {})


def row(answer: Answer) -> dict[str, Any]:
    """An answer as a prediction row of ours, which `read` reads back."""
    asked = {"inputs_pretokenized": answer.prompt, "targets_pretokenized": answer.reference}
    known = {name: getattr(answer, name) for name in OPTIONAL if getattr(answer, name) is not None}
    tags = {"tags": list(answer.tags)} if answer.tags else {}
    return {"inputs": asked, "prediction": answer.text, "id": answer.id} | known | tags


def join(sides: Answers, shared: bool = False) -> dict[str, list[Answer]]:
    """The sides' rows in the order of a: by id, or by prompt where a side has no id in common with a.

    Every side must answer the same prompts, unless `shared`: then those that all answer are kept, and the rest is
    counted on stderr.
    """
    keyed = {side: {answer.id: answer for answer in answers} for side, answers in sides.items()}
    if any(not keyed["a"].keys() & rows.keys() for rows in keyed.values()):
        keyed = {side: _by_prompt(answers) for side, answers in sides.items()}
    common = [key for key in keyed["a"] if all(key in rows for rows in keyed.values())]
    _count(keyed, len(common), shared)
    joined = {side: [rows[key] for key in common] for side, rows in keyed.items()}
    joined["a"] = _complete(joined)
    ids = [answer.id for answer in joined["a"]]
    return {
        side: [replace(answer, id=id) for answer, id in zip(rows, ids, strict=True)] for side, rows in joined.items()
    }


def known(answers: Sequence[Answer], prompts: Sequence[Prompt]) -> list[Answer]:
    """The answers with what was asked, by the ids that `infer` gives them, and with the tags that the data give it."""
    asked = {prompt.id or prompt.key: prompt for prompt in prompts}
    return [_known(answer, asked.get(answer.id)) for answer in answers]


def _known(answer: Answer, asked: Prompt | None) -> Answer:
    tags = tags_of(asked.extra.get("tags")) if asked is not None else ()
    return replace(answer, asked=asked, tags=tuple(dict.fromkeys((*answer.tags, *tags))))


def tags_of(value: object) -> tuple[str, ...]:
    """Tags as rows give them: a list, a text with commas, or an object, whose keys are then part of the tag."""
    if isinstance(value, Mapping):
        return tuple(f"{key}={item}" for key, item in value.items() if item not in (None, ""))
    if isinstance(value, str):
        value = value.split(",")
    return tuple(str(tag).strip() for tag in value if str(tag).strip()) if isinstance(value, list) else ()


def _count(keyed: Mapping[str, Mapping[str, Answer]], common: int, shared: bool) -> None:
    """Refuse rows that only some sides have, or say how many are left out."""
    wanted = keyed["a"].keys()
    lacking = []
    for side, rows in keyed.items():
        only_a, only_other = len(wanted - rows.keys()), len(rows.keys() - wanted)
        if only_a or only_other:
            lacking.append(
                f"a and {side} do not answer the same prompts: {only_a} of {len(wanted)} are only in a, "
                f"{only_other} of {len(rows)} only in {side}"
            )
    if lacking and (not shared or not common):
        way = "make both with the same prompts file, or compare what both answer: --shared"
        raise DataError("\n".join([*lacking, "No prompt is answered by all." if shared else way]))
    if lacking:
        print("\n".join([*lacking, f"compared are the {common} that all answer"]), file=sys.stderr)


def _by_prompt(answers: Sequence[Answer]) -> dict[str, Answer]:
    """Rows by prompt, the second of one prompt as its second."""
    turns: Counter[str] = Counter()
    found = {}
    for answer in answers:
        turns[answer.prompt] += 1
        found[f"{turns[answer.prompt]} {answer.prompt}"] = answer
    return found


def _complete(joined: Answers) -> list[Answer]:
    """The rows of a; a prompt, reference or tags that it does not know are those of the first side that does."""
    rows = []
    for place, answer in enumerate(joined["a"]):
        others = [answers[place] for answers in joined.values()]
        prompt = next((other.prompt for other in others if other.prompt), "")
        if not prompt:
            raise DataError(f"{answer.id}: no file says what was asked; name the prompts file, or the prompt's column")
        reference = next((other.reference for other in others if other.reference), "")
        tags = tuple(dict.fromkeys(tag for other in others for tag in other.tags))
        rows.append(replace(answer, prompt=prompt, reference=reference, tags=tags))
    return rows


def _answer(row: Row, place: str, named: Columns) -> Answer:
    """The answer in a row of any format; its id is empty where the row has none."""
    inputs = row.get("inputs")
    if isinstance(inputs, Mapping) and named.answer is None:
        found = _ours(row, inputs, place)
    elif isinstance(row.get("messages"), list) and named.answer is None:
        found = _arena(row, place)
    else:
        found = _named(row, place, named)
    by_column = [f"{column}={row[column]}" for column in named.tags if row.get(column) not in (None, "")]
    for column in named.tags:
        if column not in row:
            raise DataError(f"{place}: has no column {column}; it has {_keys(row)}")
    return replace(found, tags=(*tags_of(row.get("tags")), *by_column))


def _ours(row: Row, inputs: Row, place: str) -> Answer:
    texts = (inputs.get("inputs_pretokenized"), row.get("prediction"), inputs.get("targets_pretokenized", ""))
    if "inputs_pretokenized" not in inputs or "prediction" not in row:
        raise DataError(f"{place}: not a prediction row; it needs inputs.inputs_pretokenized and prediction")
    prompt, text, reference = texts
    if not (isinstance(prompt, str) and isinstance(text, str) and isinstance(reference, str)):
        raise DataError(f"{place}: inputs_pretokenized, targets_pretokenized and prediction are texts")
    optional: dict[str, Any] = {name: row.get(name) for name in OPTIONAL}
    return Answer(_id(row.get("id")), prompt, reference, text, **optional)


def _arena(row: Row, place: str) -> Answer:
    """Arena-Hard: `uid`, `messages`, of which the last is the answer, a text or an object that holds it."""
    turns = row["messages"]
    if not turns or not all(isinstance(turn, Mapping) for turn in turns) or turns[-1].get("role") != "assistant":
        raise DataError(f"{place}: messages do not end with an answer of the assistant")
    contents = [turn.get("content") for turn in turns]
    contents = [content.get("answer") if isinstance(content, Mapping) else content for content in contents]
    if not all(isinstance(content, str) for content in contents):
        raise DataError(f"{place}: the content of each message is a text, or an object with an answer")
    said = tuple(Message(str(turn.get("role")), text) for turn, text in zip(turns[:-1], contents[:-1], strict=True))
    alone = len(said) == 1 and said[0].role == "user"
    prompt = said[0].content if alone else "\n\n".join(f"{turn.role}: {turn.content}" for turn in said)
    return Answer(_id(_first(row, "id")), prompt, "", contents[-1])


def _named(row: Row, place: str, named: Columns) -> Answer:
    """A row whose columns are called as people call them; a row that has an id may leave the prompt to other files."""
    found: dict[str, Any] = {}
    for name in CALLED:
        column = getattr(named, name)
        if column is not None and column not in row:
            raise DataError(f"{place}: has no column {column}; it has {_keys(row)}")
        found[name] = _first(row, name) if column is None else row[column]
    for name in ("answer", "prompt"):
        if found[name] is None and (name == "answer" or found["id"] is None):
            raise DataError(
                f"{place}: not a prediction row: no column says the {name}; it has {_keys(row)}. "
                f"Name it: --{name}-column NAME"
            )
        if not isinstance(found[name], str | None):
            raise DataError(f"{place}: the {name} is {str(found[name])[:40]}, not a text")
    reference = found["reference"] if isinstance(found["reference"], str) else ""
    optional = {name: row[name] for name in OPTIONAL if isinstance(row.get(name), int | float | list)}
    return Answer(_id(found["id"]), found["prompt"] or "", reference, found["answer"], **optional)


def _first(row: Row, name: str) -> Any:
    """What a row says under the first of the names that people give a column."""
    return next((row[column] for column in CALLED[name] if row.get(column) is not None), None)


def _id(value: object) -> str:
    return "" if value is None else str(value)


def _keys(row: Row) -> str:
    return ", ".join(str(key)[:40] for key in list(row)[:12]) or "nothing"
