"""From records to files, in any of the formats."""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preferent.data.formats import layouts
from preferent.data.formats.layouts import ASSISTANT, HUMAN
from preferent.data.types import Demonstration, Message, Preference, Prompt, Record, Thumb
from preferent.errors import UsageError
from preferent.files import write_atomic

FORMATS = ("gcpc", "trl", "trl-conversational", "hh", "openai")
"""Formats that can be written; all but `gcpc` hold only preferences and name only the chosen answer."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """The number of rows written, and of records that the format cannot hold: ties, answers without a prompt, and rows
    that would be read back as something else."""

    rows: int
    ties: int
    without_prompt: int
    misread: int


def _turns(messages: Sequence[Message]) -> list[Row]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _prompt_fields(prompt: Prompt) -> Row:
    if not prompt.messages:
        return {"input_text": prompt.input_text}
    context = {} if prompt.context is None else {"context": prompt.context}
    return context | {"messages": _turns(prompt.messages)}


def _with_rest(row: Row, record: Record) -> Row:
    """Add the other fields of a record to its row; empty fields are left out, and no key is overwritten.

    Further keys get other names where the row would be read as another kind with them.
    """
    prompt = record if isinstance(record, Prompt) else record.prompt
    values: Row = {"id": record.id, "group": prompt.group, "reference": prompt.reference}
    if isinstance(record, Preference):
        values |= {"strength": record.strength, "weight": record.weight}
    if isinstance(record, Preference | Thumb):
        values |= {"annotator": record.annotator}
    row = row | {key: value for key, value in values.items() if value not in ("", None)}
    whole = dict(record.extra) | row
    is_clear = all(of(whole) == of(row) for of in (layouts.kind, layouts.preference_format))
    return row | {key if is_clear and key not in row else f"extra.{key}": value for key, value in record.extra.items()}


def _gcpc(record: Record) -> Row:
    if isinstance(record, Prompt):
        return _with_rest(_prompt_fields(record), record)
    if isinstance(record, Demonstration):
        plain = record.prompt == Prompt()
        prompt = {} if plain else _prompt_fields(record.prompt)
        return _with_rest(prompt | {"text" if plain else "output_text": record.output_text}, record)
    if isinstance(record, Thumb):
        answer = {"output_text": record.output_text, "label": record.is_good}
        return _with_rest(_prompt_fields(record.prompt) | answer, record)
    answers = {"candidate_0": record.candidate_0, "candidate_1": record.candidate_1, "choice": record.choice}
    return _with_rest(_prompt_fields(record.prompt) | answers, record)


def _conversation(prompt: Prompt) -> list[Row]:
    """Return a prompt as turns: the context as a system message, a text as the user's only message."""
    system = [] if prompt.context is None else [Message("system", prompt.context)]
    return _turns([*system, *(prompt.messages or [Message("user", prompt.input_text)])])


def _assistant_turns(answer: str) -> list[Row]:
    return [{"role": "assistant", "content": answer}]


def _dialogue(prompt: Prompt) -> str:
    """Return a prompt in the form of HH: the context, the turns, and the mark after which the assistant answers."""
    if prompt.input_text.endswith(ASSISTANT) and HUMAN in prompt.input_text:
        return prompt.input_text
    marks = {"user": HUMAN, "assistant": ASSISTANT}
    turns = prompt.messages or (Message("user", prompt.input_text),)
    return (prompt.context or "") + "".join(f"{marks[turn.role]} {turn.content}" for turn in turns) + ASSISTANT


def _hh(pair: Preference) -> Row:
    opening = _dialogue(pair.prompt)
    gap = "" if pair.prompt.input_text == opening else " "
    answers = {"chosen": pair.chosen, "rejected": pair.rejected}
    spaced = {key: opening + (answer if answer[:1].isspace() else gap + answer) for key, answer in answers.items()}
    return _with_rest(spaced, pair)


def _trl(pair: Preference) -> Row:
    if pair.prompt.messages:
        return _trl_conversational(pair)
    return _with_rest({"prompt": pair.prompt.input_text, "chosen": pair.chosen, "rejected": pair.rejected}, pair)


def _trl_conversational(pair: Preference) -> Row:
    turns = _conversation(pair.prompt)
    answers = {"chosen": _assistant_turns(pair.chosen), "rejected": _assistant_turns(pair.rejected)}
    return _with_rest({"prompt": turns} | answers, pair)


def _openai(pair: Preference) -> Row:
    return {
        "input": {"messages": _conversation(pair.prompt), "tools": [], "parallel_tool_calls": True},
        "preferred_output": _assistant_turns(pair.chosen),
        "non_preferred_output": _assistant_turns(pair.rejected),
    }


_WRITERS = {"trl": _trl, "trl-conversational": _trl_conversational, "hh": _hh, "openai": _openai}


def row(record: Record, format: str = "gcpc") -> Row | None:
    """Return a record as a row, or None if the format cannot hold it (a tie, answers without a prompt, or texts which
    its reader would refuse or take for others).

    `gcpc` loses nothing. `trl` loses the position of the chosen answer; `trl-conversational` also turns a text prompt
    into a user's message; `hh` turns conversations into text; `openai` holds only prompt and answers.
    """
    if format == "gcpc":
        return _gcpc(record)
    if format not in _WRITERS:
        raise UsageError(f"format {format}: unknown; the formats are {', '.join(FORMATS)}")
    if not isinstance(record, Preference):
        raise UsageError(f"format {format}: holds only preferences; write prompts and demonstrations as gcpc")
    if record.choice == "tie" or _lacks_prompt(record, format):
        return None
    written = _WRITERS[format](record)
    return written if _reads_back(written, record, format.removesuffix("-conversational")) else None


def _lacks_prompt(pair: Preference, format: str) -> bool:
    return format not in ("gcpc", "trl") and pair.prompt.is_empty


def _reads_back(written: Row, pair: Preference, format: str) -> bool:
    """Return whether a row is taken for one of its format, and read as the same answers."""
    if layouts.preference_format(written) != format:
        return False
    try:
        read = layouts.PREFERENCE[format](dict(written))
    except layouts.Unusable:
        return False
    return (read.chosen.strip(), read.rejected.strip()) == (pair.chosen.strip(), pair.rejected.strip())


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def write(records: Sequence[Record], path: Path, format: str = "gcpc") -> Written:
    """Write records as JSON lines, compressed if the name ends with `.gz`; the file appears whole or not at all."""
    rows = [fields for record in records if (fields := row(record, format)) is not None]
    content = lines(rows).encode()
    write_atomic(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    pairs = [] if format == "gcpc" else [record for record in records if isinstance(record, Preference)]
    ties = sum(pair.choice == "tie" for pair in pairs)
    without_prompt = sum(pair.choice != "tie" and _lacks_prompt(pair, format) for pair in pairs)
    return Written(len(rows), ties, without_prompt, len(records) - len(rows) - ties - without_prompt)
