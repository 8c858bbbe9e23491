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

from preferent.data import tables
from preferent.data.tables import Row
from preferent.data.types import Message, Prompt, digest
from preferent.errors import DataError, PlatformError

CALLED = {
    "id": ("id", "uid", "question_id"),
    "prompt": ("prompt", "input_text", "instruction", "question"),
    "answer": ("answer", "prediction", "output", "response", "completion", "output_text"),
    "reference": ("reference", "target", "ground_truth"),
}
"""What others call the columns that we look for, the first that a row has."""
OPTIONAL = {
    "tokens": "a whole number",
    "ended": "true or false",
    "kl": "a number",
    "kl_k1": "a number",
    "scores": "a list of numbers",
}
"""What only our own rows say besides, and what it is."""
SEPARATOR = "\n\n\n"
"""What stands between an instruction and the prompt."""


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
    for place, row in tables.rows(path):
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
    return next((row for _, row in tables.rows(path)), {})


def row(answer: Answer) -> dict[str, Any]:
    """An answer as a prediction row of ours, which `read` reads back."""
    asked = {"inputs_pretokenized": answer.prompt, "targets_pretokenized": answer.reference}
    known = {name: getattr(answer, name) for name in OPTIONAL if getattr(answer, name) is not None}
    tags = {"tags": list(answer.tags)} if answer.tags else {}
    return {"inputs": asked, "prediction": answer.text, "id": answer.id} | known | tags


def join(sides: Answers, shared: bool = False, prompts: Sequence[Prompt] = ()) -> dict[str, list[Answer]]:
    """The sides' rows in the order of a: by id, or by prompt where the ids join none or none that are asked alike.

    Every side must answer the same prompts, unless `shared`: then those that all answer are kept, and the rest is
    counted on stderr. Rows that do not say what was asked take it from `prompts`, by id.
    """
    asked = _by_id(prompts)
    sides = {side: [_filled(answer, asked.get(answer.id)) for answer in answers] for side, answers in sides.items()}
    keyed = _keyed(sides, asked)
    common = [key for key in keyed["a"] if all(key in rows for rows in keyed.values())]
    _count(keyed, len(common), shared)
    joined = {side: [rows[key] for key in common] for side, rows in keyed.items()}
    joined["a"] = _complete(joined)
    ids = [answer.id for answer in joined["a"]]
    return {
        side: [replace(answer, id=id) for answer, id in zip(rows, ids, strict=True)] for side, rows in joined.items()
    }


def known(answers: Sequence[Answer], prompts: Sequence[Prompt]) -> list[Answer]:
    """The answers with what was asked, by the ids that `infer` gives them or else by its text, and with the tags that
    the data give it; those that no prompt is found for are counted on stderr."""
    asked = _by_id(prompts)
    texts = {_text(prompt): prompt for prompt in reversed(prompts)}
    found = [
        _known(one, asked.get(one.id) or texts.get(one.prompt) or texts.get(_ending(one.prompt))) for one in answers
    ]
    if lost := sum(answer.asked is None for answer in found):
        print(
            f"{lost} of {len(found)} answers are to no row of the prompts file, neither by id nor by prompt; it says "
            "no tags and turns of them",
            file=sys.stderr,
        )
    return found


def _by_id(prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """Prompts by the ids that `infer` gives their answers."""
    return {prompt.id or prompt.key: prompt for prompt in prompts}


def _filled(answer: Answer, asked: Prompt | None) -> Answer:
    """The answer, with its prompt where it does not say it."""
    return answer if answer.prompt or asked is None else replace(answer, prompt=_text(asked))


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


def _keyed(sides: Answers, asked: Mapping[str, Prompt]) -> dict[str, dict[str, Answer]]:
    """The sides' rows by what joins them; ids that join what was asked differently are refused."""
    by_id = {side: {answer.id: answer for answer in answers} for side, answers in sides.items()}
    by_prompt = {side: _by_prompt(answers) for side, answers in sides.items()}
    if any(not by_id["a"].keys() & rows.keys() for rows in by_id.values()):
        return by_prompt
    for side, rows in by_id.items():
        common = [id for id in by_id["a"] if id in rows]
        differ = [id for id in common if not _alike(by_id["a"][id].prompt, rows[id].prompt, asked.get(id))]
        if len(differ) == len(common) and all(one.keys() == by_prompt["a"].keys() for one in by_prompt.values()):
            return by_prompt
        if differ:
            raise DataError(
                f"{differ[0]}: a and {side} say different prompts under this id, as under {len(differ)} of the "
                f"{len(common)} ids that both have; give the rows ids that agree, leave ids out to join them by "
                "prompt, or say which column is the prompt: --prompt-column NAME"
            )
    return by_id


def _alike(one: str, other: str, asked: Prompt | None) -> bool:
    """Whether two prompts ask the same, whatever the instruction or the chat template; an unknown one may."""
    if one.endswith(other) or other.endswith(one) or _ending(one) == _ending(other):
        return True
    text = "" if asked is None else (asked.messages[-1].content if asked.messages else asked.input_text).strip()
    return bool(text) and text in one and text in other


def _ending(prompt: str) -> str:
    """A prompt without an instruction before it."""
    return prompt.partition(SEPARATOR)[2] or prompt


def _text(prompt: Prompt) -> str:
    """What was asked, as one text."""
    return _conversation(prompt.messages) if prompt.messages else prompt.input_text


def _conversation(turns: Sequence[Message]) -> str:
    alone = len(turns) == 1 and turns[0].role == "user"
    return turns[0].content if alone else "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)


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
    return Answer(_id(row.get("id")), prompt, reference, text, **_optional(row, place))


def _optional(row: Row, place: str) -> dict[str, Any]:
    """What a row of ours says besides, each of its type."""
    found = {name: row[name] for name in OPTIONAL if row.get(name) is not None}
    for name, value in found.items():
        if name == "ended":
            fits = isinstance(value, bool)
        elif name == "scores":
            fits = isinstance(value, list) and all(_is_number(score) for score in value)
        else:
            fits = _is_number(value) and (name != "tokens" or isinstance(value, int))
        if not fits:
            raise DataError(f"{place}: {name} is {str(value)[:40]}, not {OPTIONAL[name]}")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
    return Answer(_id(_first(row, "id")), _conversation(said), "", contents[-1])


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
    return Answer(_id(found["id"]), found["prompt"] or "", reference, found["answer"])


def _first(row: Row, name: str) -> Any:
    """What a row says under the first of the names that people give a column."""
    return next((row[column] for column in CALLED[name] if row.get(column) is not None), None)


def _id(value: object) -> str:
    return "" if value is None else str(value)


def _keys(row: Row) -> str:
    return ", ".join(str(key)[:40] for key in list(row)[:12]) or "nothing"
