"""Who chose what, read from files of judgments in any format.

Ours (AutoSxS columns), preference rows, AlpacaEval's annotations, Arena-Hard's judgments, MT-Bench's pairs, and rows or
CSV whose columns are named.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from preferent.data import tables
from preferent.data.judgment_outcomes import SWAPPED
from preferent.data.tables import Row
from preferent.errors import DataError
from preferent.evaluation.exports import judgment_table

WORDS = {
    **dict.fromkeys(("a", "model a", "model_a", "model_1", "0", "left", "output_1", "1st"), "A"),
    **dict.fromkeys(("b", "model b", "model_b", "model_2", "1", "right", "output_2", "2nd"), "B"),
    **dict.fromkeys(("tie", "tie (bothbad)", "both_bad", "both bad", "same", "c", "0.5"), "tie"),
}
"""What people write for a choice."""
ARENA = {"A>>B": 1, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -1}


@dataclass(frozen=True, slots=True)
class RatedPair:
    """What one rater chose of one pair: "A" for `one`, "B" for `other` or "tie"; None where it could not be told.

    `one` and `other` are what was compared: the answers, or the names of the models; empty where a row does not say.
    `prompt` is what the pair is clustered by.
    """

    rater: str
    unit: str
    one: str
    other: str
    choice: str | None
    prompt: str
    place: str

    def of(self, one: str) -> str | None:
        """The choice with `one` as A, which is the first of the two unless it says otherwise."""
        return SWAPPED[self.choice] if self.choice is not None and one != self.one else self.choice


def read(path: Path, columns: Sequence[str] | None = None) -> list[RatedPair]:
    """Every opinion in a file; a row that holds none is an error."""
    found: list[RatedPair] = []
    for place, row in tables.rows(path):
        reader = _named(columns) if columns else _reader(row, place)
        try:
            found += reader(row, place, path.stem)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{place}: not a judgment of its kind: {error!r}") from None
    if not found:
        raise DataError(f"{path}: holds no judgments")
    return found


Reader = Callable[[Row, str, str], list[RatedPair]]


def _reader(row: Row, place: str) -> Reader:
    for keys, reader in READERS:
        if row.keys() >= keys:
            return reader
    raise DataError(
        f"{place}: no judgment that is known here; it has {', '.join(list(row)[:10])}. Name its columns: "
        "--columns ID,CHOICE or --columns ID,CHOICE,WHO"
    )


def _ours(row: Row, place: str, _stem: str) -> list[RatedPair]:
    """Judgments with AutoSxS columns, or the table made of them; of a language model with several verdicts the choice
    that they come to."""
    if judgment_table.COLUMNS.keys() <= row.keys():
        row = judgment_table.read(row)
    rater = str(row.get("annotator") or row.get("judge") or "autorater")
    said = row.get("verdicts")
    unparsable = said is not None and all(verdict["choice"] is None for verdict in said)
    choice = None if unparsable else choice_of(row["choice"])
    if row.get("identical"):
        return []
    asked = [str(row.get(name) or "") for name in ("inference_instruction", "inference_context")]
    prompt = "\n\n\n".join(text for text in asked if text)
    return [RatedPair(rater, str(row["id"]), str(row["response_a"]), str(row["response_b"]), choice, prompt, place)]


def _preference(row: Row, place: str, stem: str) -> list[RatedPair]:
    """GCPC preference rows: what the annotator chose, or the file where it names none."""
    asked = row.get("messages") or row.get("input_text") or ""
    prompt = asked if isinstance(asked, str) else json.dumps(asked, ensure_ascii=False)
    unit, rater = str(row.get("id") or prompt), str(row.get("annotator") or stem)
    choice = {0: "A", 1: "B", "tie": "tie", None: None}[row["choice"]]
    return [RatedPair(rater, unit, row["candidate_0"], row["candidate_1"], choice, prompt, place)]


def _alpaca(row: Row, place: str, stem: str) -> list[RatedPair]:
    """AlpacaEval: a preference in [1, 2], below 1.5 for output_1; 0 is a tie in its older files."""
    value = row["preference"]
    choice = None if value is None or value != value else "A" if 1 <= value < 1.5 else "B" if value > 1.5 else "tie"
    prompt, rater = str(row["instruction"]), str(row.get("annotator") or stem)
    return [RatedPair(rater, prompt, row["output_1"], row["output_2"], choice, prompt, place)]


def _arena(row: Row, place: str, stem: str) -> list[RatedPair]:
    """Arena-Hard: two games, the baseline as A in the first and as B in the second; they disagree: a tie."""
    games = [game.get("score") if isinstance(game, dict) else None for game in row["games"]]
    signs = [ARENA.get(str(score)) for score in games]
    parsed = [sign if number % 2 else -sign for number, sign in enumerate(signs) if sign is not None]
    total = sum(parsed)  # for the model
    choice = None if not parsed else "A" if total < 0 else "B" if total > 0 else "tie"
    rater, uid = str(row.get("judge") or stem), str(row["uid"])
    return [RatedPair(rater, uid, str(row["baseline"]), str(row["model"]), choice, uid, place)]


def _mt_bench(row: Row, place: str, stem: str) -> list[RatedPair]:
    """MT-Bench: two games; where they name different winners it is a tie, where one is an error nothing is known."""
    winners = (row["g1_winner"], row["g2_winner"])
    known = {"model_1": "A", "model_2": "B", "tie": "tie"}
    choice = None if "error" in winners else known[winners[0]] if winners[0] == winners[1] else "tie"
    judge = row.get("judge")
    rater = str(judge[0] if isinstance(judge, list) and judge else judge or stem)
    question = str(row["question_id"])
    unit = f"{question}/{row.get('turn', 1)}"
    return [RatedPair(rater, unit, str(row["model_1"]), str(row["model_2"]), choice, question, place)]


def _arena_votes(row: Row, place: str, stem: str) -> list[RatedPair]:
    """Chatbot Arena: model_a, model_b, winner."""
    unit, rater = str(row["question_id"]), str(row.get("judge") or stem)
    return [RatedPair(rater, unit, str(row["model_a"]), str(row["model_b"]), choice_of(row["winner"]), unit, place)]


def _named(columns: Sequence[str]) -> Reader:
    """Rows whose columns are named: what was judged, the choice, and perhaps who chose."""

    def read(row: Row, place: str, stem: str) -> list[RatedPair]:
        for column in columns:
            if column not in row:
                raise DataError(f"{place}: has no column {column}; it has {', '.join(map(str, list(row)[:10]))}")
        unit = str(row[columns[0]])
        rater = str(row[columns[2]]) if len(columns) > 2 else stem
        return [RatedPair(rater, unit, "", "", choice_of(row[columns[1]]), unit, place)]

    return read


def choice_of(value: object) -> str | None:
    """A choice as people write it; nothing and "error" are no choice, anything else is refused."""
    text = str("" if value is None else value).strip().lower()
    if text in ("", "error", "none", "null"):
        return None
    if text not in WORDS:
        raise ValueError(f"{value!r} is no choice; it is A, B or tie")
    return WORDS[text]


READERS: tuple[tuple[frozenset[str], Reader], ...] = (
    (frozenset(("id", "response_a", "response_b", "choice")), _ours),
    (frozenset(("candidate_0", "candidate_1", "choice")), _preference),
    (frozenset(("output_1", "output_2", "preference")), _alpaca),
    (frozenset(("uid", "games", "baseline", "model")), _arena),
    (frozenset(("question_id", "model_1", "model_2", "g1_winner", "g2_winner")), _mt_bench),
    (frozenset(("question_id", "model_a", "model_b", "winner")), _arena_votes),
)
"""Which keys tell a row of a format, and what reads it."""
