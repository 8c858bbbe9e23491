"""Readers of judgments in any format: who chose what.

Ours (AutoSxS columns), preference rows, thumbs, AlpacaEval's annotations, Arena-Hard's judgments, MT-Bench's pairs, and
rows or CSV whose columns are named.
"""

import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preferent.data import judgment_table
from preferent.data.formats import row_sources
from preferent.data.judgment_outcomes import SWAPPED
from preferent.errors import DataError

Row = Mapping[str, Any]
WORDS = {
    **dict.fromkeys(("a", "model a", "model_a", "model_1", "0", "left", "output_1", "1st"), "A"),
    **dict.fromkeys(("b", "model b", "model_b", "model_2", "1", "right", "output_2", "2nd"), "B"),
    **dict.fromkeys(("tie", "tie (bothbad)", "both_bad", "both bad", "same", "c", "0.5"), "tie"),
}
"""The spellings of a choice in files."""
ARENA = {"A>>B": 1, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -1}


@dataclass(frozen=True, slots=True)
class RatedPair:
    """One rater's choice for one pair: "A" for `side_a`, "B" for `side_b` or "tie"; None where it is unknown.

    `side_a` and `side_b` are what was compared: the answers, or the names of the models; empty where a row does not
    say. Pairs are clustered by `prompt`. `models` are the names of who answered, empty where unknown. `question` is the
    prompt as a row of data where the sides are answers, which a judge can read; else None.
    """

    rater: str
    unit: str
    side_a: str
    side_b: str
    choice: str | None
    prompt: str
    place: str
    models: tuple[str, str] = ("", "")
    question: Mapping[str, Any] | None = None

    def choice_with_a(self, side_a: str) -> str | None:
        """Return the choice in the order in which `side_a` is A."""
        return SWAPPED[self.choice] if self.choice is not None and side_a != self.side_a else self.choice


def read(path: Path, columns: Sequence[str] | None = None) -> list[RatedPair]:
    """Return every rated pair in a file; a row that holds none is an error."""
    pairs: list[RatedPair] = []
    for place, row in row_sources.objects(str(path)):
        reader = _named(columns) if columns else _reader(row, place)
        try:
            pairs += reader(row, place, path.stem)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{place}: the row cannot be read as a judgment of its format: {error!r}") from None
    if not pairs:
        raise DataError(f"{path}: holds no judgments")
    return pairs


Reader = Callable[[Row, str, str], list[RatedPair]]


def _text(row: Row, key: str) -> str:
    """Return a cell that must be a text."""
    if not isinstance(row[key], str):
        raise ValueError(f"{key} is {reprlib.repr(row[key])}, not a text")
    return str(row[key])


def _name(row: Row, *keys: str) -> str:
    """Return the first cell that is a name, a text or a number; an empty text if there is none."""
    for key in keys:
        if isinstance(row.get(key), list | dict):
            raise ValueError(f"{key} is {reprlib.repr(row[key])}, not a text or a number")
    return next((str(row[key]) for key in keys if row.get(key)), "")


def _reader(row: Row, place: str) -> Reader:
    for keys, reader in READERS:
        if row.keys() >= keys:
            return reader
    raise DataError(
        f"{place}: the row is not in a known format of judgments; it has {', '.join(list(row)[:10])}. "
        "Name its columns: --columns ID,CHOICE or --columns ID,CHOICE,WHO"
    )


def _ours(row: Row, place: str, _stem: str) -> list[RatedPair]:
    """Read a judgment in AutoSxS columns, or a row of the table made of them.

    Several verdicts of a language model count as the one choice that the row states.
    """
    if judgment_table.COLUMNS.keys() <= row.keys():
        row = judgment_table.read(row)
    rater = _name(row, "annotator", "judge") or "autorater"
    verdicts = row.get("verdicts")
    unparsable = verdicts is not None and all(verdict["choice"] is None for verdict in verdicts)
    choice = None if unparsable else choice_of(row["choice"])
    if row.get("identical"):
        return []
    parts = [_name(row, name) for name in ("inference_instruction", "inference_context")]
    prompt = "\n\n\n".join(part for part in parts if part)
    unit = _name(row, "id") or str(row["id"])
    sides = _text(row, "response_a"), _text(row, "response_b")
    models = _name(row, "model_a"), _name(row, "model_b")
    return [RatedPair(rater, unit, *sides, choice, prompt, place, models, {"input_text": prompt})]


def _preference(row: Row, place: str, stem: str) -> list[RatedPair]:
    """Read a GCPC preference row; the rater is the annotator, or the file where none is named."""
    question = row.get("messages") or row.get("input_text") or ""
    prompt = question if isinstance(question, str) else json.dumps(question, ensure_ascii=False)
    unit, rater = _name(row, "id") or prompt, _name(row, "annotator") or stem
    if isinstance(row["choice"], bool | float):
        raise ValueError(f'choice is {row["choice"]}, not 0, 1 or "tie"')
    choice = {0: "A", 1: "B", "tie": "tie", None: None}[row["choice"]]
    sides = _text(row, "candidate_0"), _text(row, "candidate_1")
    models = _name(row, "model_0"), _name(row, "model_1")
    turns = {"input_text": prompt} if isinstance(question, str) else {"messages": question}
    return [RatedPair(rater, unit, *sides, choice, prompt, place, models, turns)]


def _thumb(row: Row, place: str, stem: str) -> list[RatedPair]:
    """Read a thumb as `label` writes it: up is A, the answer, and down is B, which is no answer."""
    question = row.get("messages") or row.get("input_text") or ""
    prompt = question if isinstance(question, str) else json.dumps(question, ensure_ascii=False)
    if not isinstance(row["label"], bool | None):
        raise ValueError(f"label is {reprlib.repr(row['label'])}, not true or false")
    choice = None if row["label"] is None else "A" if row["label"] else "B"
    unit, rater = _name(row, "id") or prompt, _name(row, "annotator") or stem
    return [RatedPair(rater, unit, _text(row, "output_text"), "", choice, prompt, place)]


def _alpaca(row: Row, place: str, stem: str) -> list[RatedPair]:
    """Read an AlpacaEval row: a preference in [1, 2], below 1.5 for output_1; 0 is a tie in its older files."""
    value = row["preference"]
    if isinstance(value, bool) or not (value in (None, 0) or 1 <= value <= 2):
        raise ValueError(f"preference is {reprlib.repr(value)}, not a number from 1 (output_1) to 2 (output_2)")
    choice = None if value is None else "A" if 1 <= value < 1.5 else "B" if value > 1.5 else "tie"
    prompt = "\n".join(str(part) for part in (_text(row, "instruction"), row.get("input")) if part)
    rater = _name(row, "annotator") or stem
    sides = _text(row, "output_1"), _text(row, "output_2")
    models = _name(row, "generator_1"), _name(row, "generator_2")
    return [RatedPair(rater, prompt, *sides, choice, prompt, place, models, {"input_text": prompt})]


def _arena(row: Row, place: str, stem: str) -> list[RatedPair]:
    """Read an Arena-Hard row: two games, the baseline as A in the first and as B in the second; a split is a tie."""
    games = [game.get("score") if isinstance(game, dict) else None for game in row["games"]]
    signs = [ARENA.get(str(score)) for score in games]
    parsed = [sign if number % 2 else -sign for number, sign in enumerate(signs) if sign is not None]
    total = sum(parsed)  # for the model
    choice = None if not parsed else "A" if total < 0 else "B" if total > 0 else "tie"
    rater, uid = _name(row, "judge") or stem, _name(row, "uid") or str(row["uid"])
    sides = _text(row, "baseline"), _text(row, "model")
    return [RatedPair(rater, uid, *sides, choice, uid, place, sides)]


def _mt_bench(row: Row, place: str, stem: str) -> list[RatedPair]:
    """Read an MT-Bench row: two games; different winners are a tie, and with one error the choice is unknown."""
    winners = (row["g1_winner"], row["g2_winner"])
    known = {"model_1": "A", "model_2": "B", "tie": "tie"}
    choice = None if "error" in winners else known[winners[0]] if winners[0] == winners[1] else "tie"
    judge = row.get("judge")
    rater = str(judge[0] if isinstance(judge, list) and judge else judge or stem)
    question = _name(row, "question_id") or str(row["question_id"])
    unit = f"{question}/{_name(row, 'turn') or 1}"
    sides = _text(row, "model_1"), _text(row, "model_2")
    return [RatedPair(rater, unit, *sides, choice, question, place, sides)]


def _arena_votes(row: Row, place: str, stem: str) -> list[RatedPair]:
    """Read a Chatbot Arena row: model_a, model_b, winner."""
    unit, rater = _name(row, "question_id") or str(row["question_id"]), _name(row, "judge") or stem
    sides = _text(row, "model_a"), _text(row, "model_b")
    return [RatedPair(rater, unit, *sides, choice_of(row["winner"]), unit, place, sides)]


def _named(columns: Sequence[str]) -> Reader:
    """Return a reader of rows with these columns: what was judged, the choice, and optionally who chose."""

    def read(row: Row, place: str, stem: str) -> list[RatedPair]:
        for column in columns:
            if column not in row:
                raise DataError(f"{place}: has no column {column}; it has {', '.join(map(str, list(row)[:10]))}")
        unit = _name(row, columns[0]) or str(row[columns[0]])
        rater = _name(row, columns[2]) or str(row[columns[2]]) if len(columns) > 2 else stem
        return [RatedPair(rater, unit, "", "", choice_of(row[columns[1]]), unit, place)]

    return read


def choice_of(value: object) -> str | None:
    """Return the choice that a cell spells, None for an empty cell or "error"; raise ValueError for other texts."""
    text = str("" if value is None else value).strip().lower()
    if text in ("", "error", "none", "null"):
        return None
    if text not in WORDS:
        raise ValueError(f"{reprlib.repr(value)} is not a choice; write A, B or tie")
    return WORDS[text]


READERS: tuple[tuple[frozenset[str], Reader], ...] = (
    (frozenset(("id", "response_a", "response_b", "choice")), _ours),
    (frozenset(("candidate_0", "candidate_1", "choice")), _preference),
    (frozenset(("output_text", "label")), _thumb),
    (frozenset(("output_1", "output_2", "preference")), _alpaca),
    (frozenset(("uid", "games", "baseline", "model")), _arena),
    (frozenset(("question_id", "model_1", "model_2", "g1_winner", "g2_winner")), _mt_bench),
    (frozenset(("question_id", "model_a", "model_b", "winner")), _arena_votes),
)
"""The keys by which a row of a format is recognised, and its reader."""
