"""Load questions about one answer: of a run, of prediction files, and of files of feedback, pairs or answers."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from preferent.data.formats import layouts, row_reader, row_sources
from preferent.data.formats.feedback import feedback_reader, single_answers
from preferent.data.types import Preference, Thumb, digest
from preferent.errors import DataError
from preferent.labeling import questions
from preferent.labeling.questions import Question, Side
from preferent.labeling.sources import question_sources
from preferent.labeling.sources.question_sources import QuestionMaterial


def of_pairs(material: QuestionMaterial) -> QuestionMaterial:
    """Return a question about each of the answers in pairs, without what the pairs have to say of them."""
    sides: tuple[Side, Side] = ("a", "b")
    return _distinct([_alone(pair, side) for pair in material.source or material.questions for side in sides])


def _alone(pair: Question, side: Side) -> Question:
    answer, model = pair.answer(side), pair.model(side)
    return dataclasses.replace(pair, a=answer, b=None, model_a=model, model_b="", imported=None)


def from_file(path: Path, gold: bool = False) -> QuestionMaterial:
    """Load a file: answers with or without a thumb, preferences in any format, or an export of people's feedback.

    A thumb that an answer has is kept and never shown; control questions (`gold`) need one.
    """
    first = next((row for _, row in row_sources.rows(str(path)) if isinstance(row, dict)), {})
    kind = layouts.kind(first)
    if kind == "demonstration":
        material = _distinct(list(_rows(path)))
    elif kind == "preference":
        pairs = question_sources.from_rows(path)
        material = of_pairs(pairs)
        material = dataclasses.replace(material, notes=pairs.notes + material.notes)
    elif feedback_reader.layout_of_file(str(path)):
        material = _exported(path)
    else:
        raise DataError(
            f"{path}: holds no answers: the first row has {layouts.keys_of(first) or 'no keys'}; write rows with "
            "input_text and output_text, or give preferences or an export of feedback"
        )
    return _known(path, material) if gold else material


def _rows(path: Path) -> Iterator[Question]:
    """Yield the answers in rows of demonstrations and thumbs; a bad row is an error."""
    for number, row in row_sources.rows(str(path)):
        try:
            if isinstance(row, str):
                raise layouts.Unusable(row)
            thumb = single_answers.thumb_in(row.get("label"))
            record = layouts.demonstration({key: cell for key, cell in row.items() if key != "label"})
        except layouts.Unusable as reason:
            raise DataError(f"{path}:{number}: {reason}") from None
        yield _question(Thumb(record.prompt, record.output_text, bool(thumb), record.id, extra=record.extra), thumb)


def _exported(path: Path) -> QuestionMaterial:
    """Return a question about each answer that somebody judged, alone or in a pair."""
    reading = feedback_reader.read_feedback([str(path)]).as_rows
    row_reader.kept(reading)
    asked: list[Question] = []
    for record in reading.records:
        if isinstance(record, Preference):
            asked += of_pairs(QuestionMaterial([questions.from_preference(record)])).questions
        else:
            asked.append(_question(record, record.is_good))
    if not asked:
        raise DataError(f"{path}: holds no answers to ask about: {reading.reasons}")
    material = _distinct(asked)
    left_out = [f"{count} records are left out: {reason}" for reason, count in reading.reasons.items()]
    return dataclasses.replace(material, notes=left_out + material.notes)


def _question(thumb: Thumb, is_good: bool | None) -> Question:
    """Return the question about an answer, and the thumb that it had; its models are named if the row does."""
    prompt, answer, extra = thumb.prompt, thumb.output_text, dict(thumb.extra)
    models = extra.get("models", [extra.get("model", "")])
    names = [str(name) for name in models][:2] if isinstance(models, list) else []
    kept = {name: cell for name, cell in extra.items() if name not in questions.VOTED}
    first, second = [*names, "", ""][:2]
    verdict: questions.Verdict | None = None if is_good is None else "up" if is_good else "down"
    id, context = thumb.id or digest(prompt.key, answer), questions.text(prompt)
    return Question(id, prompt, answer, None, first, second, context=context, imported=verdict, extra=kept)


def _distinct(asked: Sequence[Question]) -> QuestionMaterial:
    """Return the questions without repetitions. Two models that gave one answer are both named in its question."""
    unique: dict[str, Question] = {}
    for question in asked:
        earlier = unique.setdefault(question.pair_key, question)
        if question.model_a not in (earlier.model_a, "") and not earlier.model_b:
            unique[question.pair_key] = dataclasses.replace(earlier, model_b=question.model_a)
    repeated = len(asked) - len(unique)
    notes = [f"{repeated} answers repeat an earlier one to the same prompt, which is asked once"] if repeated else []
    return QuestionMaterial(list(unique.values()), notes=notes)


def _known(path: Path, material: QuestionMaterial) -> QuestionMaterial:
    """Return the questions as control questions, whose thumb is known."""
    if not all(question.imported for question in material.questions):
        raise DataError(f"{path}: a control question needs a thumb that is known: label, true or false")
    known = [dataclasses.replace(each, gold=each.imported, imported=None) for each in material.questions]
    return dataclasses.replace(material, questions=known)
