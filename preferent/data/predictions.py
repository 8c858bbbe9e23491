"""Prediction files in any format, read and joined by id or by prompt.

The format is detected from the row: GCPC's prediction rows (ours), AlpacaEval's `model_outputs.json`, Arena-Hard's
answers, or an object or CSV row with columns of usual names, or of the names that the caller gives.
"""

import reprlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from preferent.data.formats import ambiguous_keys, row_sources
from preferent.data.prediction_columns import COLUMN_NAMES, Columns, Row
from preferent.data.types import SEPARATOR, Message, Prompt, digest
from preferent.errors import DataError, PlatformError, UsageError
from preferent.runs.directory import StageDirectory

LARGEST = 1e15
"""The largest number that a field may hold: sums of squares of such numbers are still finite."""
OPTIONAL = {
    "tokens": "a whole number from 0",
    "ended": "true or false",
    "kl": "a number",
    "kl_k1": "a number",
    "scores": "a list of numbers",
}
"""Optional fields of our own rows, with their types."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a prompt; a field that a foreign file does not have is None, and an unknown prompt is empty.

    `kl` and `kl_k1` are in nats per answer. `prompt_record` is the prompt in the data, if known. If the answer is the
    best of several, `scores` are the scores of all of them. `tags` are the slices that it belongs to.
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
    prompt_record: Prompt | None = None
    tags: tuple[str, ...] = ()


Answers = Mapping[str, Sequence[Answer]]
"""Answers to the same prompts in the same order, [n], by side."""


def prediction_file(path: Path) -> Path:
    """Return the prediction file at a path: the file itself, or the predictions of a stage's folder."""
    file = StageDirectory(path).answers if path.is_dir() else path
    if not file.exists() and file != Path("-"):
        raise PlatformError(f"{file}: no such prediction file; make one with `preferent infer`")
    return file


def read(path: Path, columns: Columns | None = None) -> list[Answer]:
    """Read the answers in a file. Rows without an id get one from their prompt; repeats of a prompt are numbered."""
    return _answers(path, list(row_sources.objects(str(path))), columns or Columns())


def read_sides(paths: Sequence[Path], columns: Columns) -> list[list[Answer]]:
    """Read the answers in several files, each read once; a column that no file has is an error."""
    contents = [list(row_sources.objects(str(path))) for path in paths]
    if missing := columns.missing([rows[0][1] for rows in contents if rows]):
        raise UsageError(f"{', '.join(missing)}: no file of answers has such a column")
    return [_answers(path, rows, columns) for path, rows in zip(paths, contents, strict=True)]


def _answers(path: Path, rows: Sequence[tuple[str, Row]], columns: Columns) -> list[Answer]:
    named = columns.among(rows[0][1] if rows else {})
    answers: list[Answer] = []
    prompts: Counter[str] = Counter()
    ids: dict[str, str] = {}
    parts: dict[str, dict[str, str]] = {}
    for place, row in rows:
        answer = _answer(row, place, named)
        if not answer.id:
            further = _further_parts(row, answer, named)
            _require_same(parts.setdefault(answer.prompt, further), further, place)
            prompts[answer.prompt] += 1
            turn = prompts[answer.prompt]
            answer = replace(answer, id=digest(answer.prompt) + (f"-{turn}" if turn > 1 else ""))
        if answer.id in ids:
            raise DataError(
                f"{place}: has the id {answer.id}, as the row at {ids[answer.id]}; give each row a different id"
            )
        ids[answer.id] = place
        answers.append(answer)
    if not answers:
        raise DataError(f"{path}: holds no predictions")
    return answers


def _further_parts(row: Row, answer: Answer, named: Columns) -> dict[str, str]:
    """Return the texts of a row that no column holds and that may be part of what was asked."""
    known = {*chain.from_iterable(COLUMN_NAMES.values()), *named.tags, "tags", "inputs", "messages"}
    known |= {getattr(named, name) for name in COLUMN_NAMES} | ({"input"} if named.prompt is None else set())
    names = [key for key in row if key not in known and ambiguous_keys.looks_like_prompt(key, row[key])]
    return {key: str(row[key]) for key in names if not answer.text or answer.text not in str(row[key])}


def _require_same(first: Mapping[str, str], parts: Mapping[str, str], place: str) -> None:
    """Refuse a row without an id whose prompt is that of the first row, with another text beside it."""
    if differ := [key for key in {**first, **parts} if first.get(key) != parts.get(key)]:
        raise DataError(
            f"{place}: has the prompt of an earlier row, but another {differ[0][:40]}; rows without ids are joined by "
            "prompt, so it would be compared with the answer to something else: give the rows ids (--id-column NAME), "
            "or name a column that holds the whole prompt (--prompt-column NAME)"
        )


def row(answer: Answer) -> dict[str, Any]:
    """Return an answer as a prediction row of ours, which `read` reads back."""
    inputs = {"inputs_pretokenized": answer.prompt, "targets_pretokenized": answer.reference}
    known = {name: getattr(answer, name) for name in OPTIONAL if getattr(answer, name) is not None}
    tags = {"tags": list(answer.tags)} if answer.tags else {}
    return {"inputs": inputs, "prediction": answer.text, "id": answer.id} | known | tags


def join(
    sides: Answers, shared: bool = False, prompts: Sequence[Prompt] = (), names: Mapping[str, str] | None = None
) -> dict[str, list[Answer]]:
    """Join the rows of the sides, in the order of a: by id, or by prompt if the ids match no rows with the same prompt.

    Every side must answer the same prompts, unless `shared` is set: then the prompts that all sides answer are kept,
    and the others are counted on stderr. Rows without a prompt get it from `prompts`, by id. `names` are what a
    message calls the sides.
    """
    by_id, names = _by_id(prompts), {side: side.removeprefix("side.") for side in sides} | dict(names or {})
    sides = {side: [_filled(answer, by_id.get(answer.id)) for answer in answers] for side, answers in sides.items()}
    keyed = _keyed(sides, by_id, names)
    common = [key for key in keyed["a"] if all(key in rows for rows in keyed.values())]
    _count(keyed, names, len(common), shared)
    joined = {side: [rows[key] for key in common] for side, rows in keyed.items()}
    joined["a"] = _complete(joined)
    ids = [answer.id for answer in joined["a"]]
    return {
        side: [replace(answer, id=id) for answer, id in zip(rows, ids, strict=True)] for side, rows in joined.items()
    }


def with_prompts(answers: Sequence[Answer], prompts: Sequence[Prompt]) -> list[Answer]:
    """Add to each answer its prompt, matched by the ids that `infer` gives or by text, and the prompt's tags.

    Answers without a match are counted on stderr.
    """
    by_id = _by_id(prompts)
    texts = {_text(prompt): prompt for prompt in reversed(prompts)}
    matched = [
        _with_prompt(answer, by_id.get(answer.id) or texts.get(answer.prompt) or texts.get(_ending(answer.prompt)))
        for answer in answers
    ]
    if lost := sum(answer.prompt_record is None for answer in matched):
        print(
            f"{lost} of {len(matched)} answers match no row of the prompts file, neither by id nor by prompt; they get "
            "no tags and no turns from it",
            file=sys.stderr,
        )
    return matched


def _by_id(prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """Return prompts by the ids that `infer` gives their answers."""
    return {prompt.id or prompt.key: prompt for prompt in prompts}


def _filled(answer: Answer, prompt: Prompt | None) -> Answer:
    """Return an answer with the text of its prompt, if it has none itself."""
    return answer if answer.prompt or prompt is None else replace(answer, prompt=_text(prompt))


def _with_prompt(answer: Answer, prompt: Prompt | None) -> Answer:
    tags = tags_of(prompt.extra.get("tags")) if prompt is not None else ()
    return replace(answer, prompt_record=prompt, tags=tuple(dict.fromkeys((*answer.tags, *tags))))


def tags_of(value: object) -> tuple[str, ...]:
    """Return the tags in a list, in a text with commas, or in an object, whose keys are part of the tags."""
    if isinstance(value, Mapping):
        return tuple(f"{key}={tag}" for key, tag in value.items() if tag not in (None, ""))
    if isinstance(value, str):
        value = value.split(",")
    return tuple(str(tag).strip() for tag in value if str(tag).strip()) if isinstance(value, list) else ()


def _keyed(sides: Answers, prompts: Mapping[str, Prompt], names: Mapping[str, str]) -> dict[str, dict[str, Answer]]:
    """Return the rows of the sides by the key that joins them; refuse ids that stand for different prompts."""
    by_id = {side: {answer.id: answer for answer in answers} for side, answers in sides.items()}
    by_prompt = {side: _by_prompt(answers) for side, answers in sides.items()}
    if any(not by_id["a"].keys() & rows.keys() for rows in by_id.values()):
        return by_prompt
    for side, rows in by_id.items():
        common = [id for id in by_id["a"] if id in rows]
        differ = [id for id in common if not _alike(by_id["a"][id].prompt, rows[id].prompt, prompts.get(id))]
        if len(differ) == len(common) and all(others.keys() == by_prompt["a"].keys() for others in by_prompt.values()):
            return by_prompt
        if differ:
            raise DataError(
                f"{differ[0]}: {names['a']} and {names[side]} have different prompts under this id, as under "
                f"{len(differ)} of the {len(common)} ids that both have; give the rows matching ids, leave ids out to "
                "join them by prompt, or name the column of the prompt: --prompt-column NAME"
            )
    return by_id


def _alike(first: str, second: str, prompt: Prompt | None) -> bool:
    """Return whether two prompts are the same but for the instruction or the chat template; an unknown one may be."""
    if first.endswith(second) or second.endswith(first) or _ending(first) == _ending(second):
        return True
    text = "" if prompt is None else (prompt.messages[-1].content if prompt.messages else prompt.input_text).strip()
    return bool(text) and text in first and text in second


def _ending(prompt: str) -> str:
    """Return a prompt without the instruction before it."""
    return prompt.partition(SEPARATOR)[2] or prompt


def _text(prompt: Prompt) -> str:
    """Return a prompt as one text."""
    return _conversation(prompt.messages) if prompt.messages else prompt.input_text


def _conversation(turns: Sequence[Message]) -> str:
    alone = len(turns) == 1 and turns[0].role == "user"
    return turns[0].content if alone else "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def _count(keyed: Mapping[str, Mapping[str, Answer]], names: Mapping[str, str], common: int, shared: bool) -> None:
    """Refuse rows that only some sides have, or report how many are left out."""
    wanted = keyed["a"].keys()
    lacking = []
    for side, rows in keyed.items():
        only_a, only_other = len(wanted - rows.keys()), len(rows.keys() - wanted)
        if only_a or only_other:
            lacking.append(
                f"{names['a']} and {names[side]} do not answer the same prompts: {only_a} of {len(wanted)} are only in "
                f"{names['a']}, {only_other} of {len(rows)} only in {names[side]}"
            )
    if lacking and (not shared or not common):
        way = "make both with the same prompts file, or compare the prompts that both answer: --shared"
        raise DataError(
            "\n".join([*lacking, "no prompt is answered by all; check the ids and the prompts" if shared else way])
        )
    if lacking:
        print("\n".join([*lacking, f"comparing the {common} prompts that all answer"]), file=sys.stderr)


def _by_prompt(answers: Sequence[Answer]) -> dict[str, Answer]:
    """Return rows by their prompt; repeats of a prompt are numbered."""
    turns: Counter[str] = Counter()
    rows = {}
    for answer in answers:
        turns[answer.prompt] += 1
        rows[f"{turns[answer.prompt]} {answer.prompt}"] = answer
    return rows


def _complete(joined: Answers) -> list[Answer]:
    """Return the rows of a; a missing prompt or reference is that of the first side that has it, tags are of all."""
    rows = []
    for place, answer in enumerate(joined["a"]):
        others = [answers[place] for answers in joined.values()]
        prompt = next((other.prompt for other in others if other.prompt), "")
        if not prompt:
            raise DataError(f"{answer.id}: no file has the prompt; name the prompts file, or the column of the prompt")
        reference = next((other.reference for other in others if other.reference), "")
        tags = tuple(dict.fromkeys(tag for other in others for tag in other.tags))
        rows.append(replace(answer, prompt=prompt, reference=reference, tags=tags))
    return rows


def _answer(row: Row, place: str, named: Columns) -> Answer:
    """Return the answer in a row of any format; its id is empty if the row has none."""
    inputs = row.get("inputs")
    if isinstance(inputs, Mapping) and named.answer is None:
        answer = _ours(row, inputs, place)
    elif isinstance(row.get("messages"), list) and named.answer is None:
        answer = _arena(row, place)
    else:
        answer = _named(row, place, named)
    by_column = [f"{column}={row[column]}" for column in named.tags if row.get(column) not in (None, "")]
    for column in named.tags:
        if column not in row:
            raise DataError(f"{place}: has no column {column}; it has {_keys(row)}")
    return replace(answer, tags=(*tags_of(row.get("tags")), *by_column))


def _ours(row: Row, inputs: Row, place: str) -> Answer:
    texts = (inputs.get("inputs_pretokenized"), row.get("prediction"), inputs.get("targets_pretokenized", ""))
    if "inputs_pretokenized" not in inputs or "prediction" not in row:
        raise DataError(f"{place}: not a prediction row; it needs inputs.inputs_pretokenized and prediction")
    prompt, text, reference = texts
    if not (isinstance(prompt, str) and isinstance(text, str) and isinstance(reference, str)):
        raise DataError(f"{place}: inputs_pretokenized, targets_pretokenized and prediction must be texts")
    return Answer(_id(row.get("id"), place), prompt, reference, text, **_optional(row, place))


def _optional(row: Row, place: str) -> dict[str, Any]:
    """Return the optional fields of a row of ours, each of its type."""
    fields = {name: row[name] for name in OPTIONAL if row.get(name) is not None}
    for name, value in fields.items():
        if name == "ended":
            fits = isinstance(value, bool)
        elif name == "scores":
            fits = isinstance(value, list) and all(_is_number(score) for score in value)
        else:
            fits = _is_number(value) and (name != "tokens" or (isinstance(value, int) and value >= 0))
        if not fits:
            raise DataError(f"{place}: {name} is {str(value)[:40]}, not {OPTIONAL[name]}")
    return fields


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _arena(row: Row, place: str) -> Answer:
    """Read a row of Arena-Hard: `uid`, and `messages`, whose last content is the answer or an object that holds it."""
    turns = row["messages"]
    if not turns or not all(isinstance(turn, Mapping) for turn in turns) or turns[-1].get("role") != "assistant":
        raise DataError(f"{place}: messages do not end with an answer of the assistant; add one")
    contents = [turn.get("content") for turn in turns]
    contents = [content.get("answer") if isinstance(content, Mapping) else content for content in contents]
    if not all(isinstance(content, str) for content in contents):
        raise DataError(f"{place}: the content of each message must be a text, or an object with an answer")
    turns_before = tuple(
        Message(str(turn.get("role")), text) for turn, text in zip(turns[:-1], contents[:-1], strict=True)
    )
    return Answer(_id(_first(row, "id"), place), _conversation(turns_before), "", contents[-1])


def _named(row: Row, place: str, named: Columns) -> Answer:
    """Read a row with columns of usual or given names; a row with an id may leave the prompt to other files."""
    cells: dict[str, Any] = {}
    for name in COLUMN_NAMES:
        column = getattr(named, name)
        if column is not None and column not in row:
            raise DataError(f"{place}: has no column {column}; it has {_keys(row)}")
        cells[name] = _first(row, name) if column is None else row[column]
    for name in ("answer", "prompt"):
        if cells[name] is None and (name == "answer" or cells["id"] is None):
            raise DataError(
                f"{place}: not a prediction row: no column holds the {name}; it has {_keys(row)}. "
                f"Name it: --{name}-column NAME"
            )
        if not isinstance(cells[name], str | None):
            raise DataError(f"{place}: the {name} is {str(cells[name])[:40]}, not a text")
    reference = cells["reference"] if isinstance(cells["reference"], str) else ""
    prompt = cells["prompt"] or ""
    if named.prompt is None and prompt and isinstance(row.get("input"), str) and row["input"]:
        prompt = f"{prompt}\n{row['input']}"  # Alpaca
    return Answer(_id(cells["id"], place), prompt, reference, cells["answer"])


def _first(row: Row, name: str) -> Any:
    """Return the cell of a row under the first of the usual names of a column."""
    return next((row[column] for column in COLUMN_NAMES[name] if row.get(column) is not None), None)


def _id(value: object, place: str) -> str:
    if isinstance(value, list | dict):
        raise DataError(f"{place}: the id is {reprlib.repr(value)}, not a text or a number")
    return "" if value is None else str(value)


def _keys(row: Row) -> str:
    return ", ".join(str(key)[:40] for key in list(row)[:12]) or "nothing"
