"""The keys of a row by what the user says they mean: which holds the prompt, which the better answer, which nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from preferent.config.sections import COLUMNS
from preferent.errors import UsageError

Row = dict[str, Any]
NamedColumns = Mapping[str, Sequence[str]]
"""The keys of a row by meaning, one of `COLUMNS`. Texts of several keys are joined; keys under `extra` mean nothing."""
NONE: NamedColumns = {}
AS_STATED = "the keys are what --columns or data.columns says"


def parse(text: str) -> dict[str, list[str]]:
    """Return the columns that `MEANING=KEY,MEANING=KEY+KEY` names; raise `UsageError` for an unknown meaning."""
    columns: dict[str, list[str]] = {}
    for word in text.split(",") if text else ():
        meaning, equals, keys = word.strip().partition("=")
        if not equals or not all(keys.split("+")):
            raise UsageError(f"--columns {word}: write it as MEANING=KEY, for example --columns prompt=question")
        if meaning not in COLUMNS:
            raise UsageError(f"--columns {word}: '{meaning}' is unknown; the meanings are {', '.join(COLUMNS)}")
        if meaning in columns and meaning != "extra":
            raise UsageError(f"--columns {word}: {meaning} is named twice; join keys with +, as in {meaning}=KEY+KEY")
        columns.setdefault(meaning, []).extend(keys.split("+"))
    return columns


def renamed(row: Row, columns: NamedColumns) -> Row | str:
    """Return a row with its keys renamed as `columns` says, or the reason why it cannot be.

    A meaning of which the row has no key is left as the row has it. A key that loses its name to another one, and one
    that means nothing, begins with `extra.` afterwards.
    """
    present = {meaning: [key for key in keys if key in row] for meaning, keys in columns.items()}
    moved = {key for keys in present.values() for key in keys}
    if not moved:
        return row
    free = {key: value for key, value in row.items() if key not in moved}
    named = {f"extra.{key}" if present.get(key) else key: value for key, value in free.items()}
    named |= {f"extra.{key}": row[key] for key in present.get("extra", ())}
    for meaning, keys in present.items():
        if meaning == "extra" or not keys:
            continue
        wrong = [key for key in keys if len(keys) > 1 and not isinstance(row[key], str | None)]
        if wrong:
            return f"wrong type: {wrong[0][:40]} is not a text, so it cannot be joined to others; {AS_STATED}"
        joined = "\n".join(text for key in keys if isinstance(text := row[key], str) and text)
        named[meaning] = row[keys[0]] if len(keys) == 1 else joined
    return _with_system(named) if present.get("context") else named


def _with_system(row: Row) -> Row:
    """Return a row whose context, which the user named, is the system text of the conversation in its prompt."""
    place = next((key for key in ("prompt", "input_text") if row.get(key) is not None), None)
    if place is None or not row["context"]:
        return {key: value for key, value in row.items() if key != "context" or value}
    rest = {key: value for key, value in row.items() if key not in (place, "context")}
    turns = row[place] if isinstance(row[place], list) else [{"role": "user", "content": row[place]}]
    conversation = [{"role": "system", "content": row["context"]}, *turns]
    return rest | {"prompt" if place == "prompt" else "messages": conversation}
