"""Export thumbs to files: those to train on, and the rest by kind. They lie beside the files of votes on pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from preferent.data.formats import row_writer
from preferent.data.formats.feedback.single_answers import ANSWERS, LABELS, PROMPTS
from preferent.data.types import Thumb
from preferent.labeling.events import AnnotatorHistory, HumanVote
from preferent.labeling.questions import Question

Row = dict[str, Any]
Name = Literal["thumbs", "thumb_skips", "thumb_gold", "thumb_flags"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(slots=True)
class ThumbExports:
    """The rows of each file. Votes = thumbs + skips + gold."""

    rows: dict[Name, list[Row]] = field(default_factory=lambda: {name: [] for name in NAMES})

    def __str__(self) -> str:
        count = {name: len(rows) for name, rows in self.rows.items()}
        up = sum(row["label"] for row in self.rows["thumbs"])
        votes = count["thumbs"] + count["thumb_skips"] + count["thumb_gold"]
        return (
            f"{votes} votes: {up} thumbs up, {count['thumbs'] - up} down, {count['thumb_skips']} skips, "
            f"{count['thumb_gold']} on control questions; {count['thumb_flags']} flags"
        )


def export(questions: Sequence[Question], histories: Mapping[str, AnnotatorHistory]) -> ThumbExports:
    """Return the rows of all files, in the order of the questions and of the annotators' names."""
    exports = ThumbExports()
    for question in questions:
        for name in sorted(histories):
            history = histories[name]
            if question.key in history.flags:
                flag = _row(question, name, False, {"note": history.flags[question.key]})
                exports.rows["thumb_flags"].append({key: cell for key, cell in flag.items() if key != "label"})
            if question.key in history.votes:
                _add(exports, question, name, history.votes[question.key], question.key in history.flags)
    return exports


def _add(exports: ThumbExports, question: Question, annotator: str, vote: HumanVote, is_flagged: bool) -> None:
    """Add a vote to the file that it belongs to. A skip has no label."""
    about = {"note": vote.note, "seconds": vote.seconds, "at": vote.at, "probability": question.probability}
    about |= {"imported": question.imported} if question.imported else {}
    row = _row(question, annotator, vote.choice == "up", about | {"flagged": is_flagged})
    if vote.verdict is None:
        row["label"] = None
    if question.gold is not None:
        exports.rows["thumb_gold"].append(row | {"gold": question.gold == "up", "right": vote.right(question)})
    else:
        exports.rows["thumb_skips" if vote.verdict is None else "thumbs"].append(row)


def _row(question: Question, annotator: str, is_good: bool, about: Mapping[str, Any]) -> Row:
    """Return a row of unpaired feedback. Keys of the data that such a row would be read by get another name."""
    about = {"models": [name for name in (question.model_a, question.model_b) if name], **about}
    taken = {*about, *PROMPTS, *ANSWERS, *LABELS}
    kept = {f"source.{name}" if name in taken else name: cell for name, cell in question.extra.items()}
    thumb = Thumb(question.prompt, question.a, is_good, question.id, annotator, kept | about)
    row = row_writer.row(thumb)
    assert row is not None, "every row can be written as ours"
    return row
