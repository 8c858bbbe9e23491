"""Load questions from a run, from two files of predictions, from preference rows, or from exports of other tools."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preferent.config import recipe
from preferent.data import datasets, predictions
from preferent.data.formats import layouts, row_reader, row_sources
from preferent.data.predictions import Answer
from preferent.data.types import SEPARATOR, Prompt, digest
from preferent.errors import DataError, PlatformError
from preferent.labeling import questions
from preferent.labeling.events import Event
from preferent.labeling.questions import Question, other
from preferent.labeling.sources import label_imports
from preferent.runs.directory import RunDirectory

PAIR = frozenset({"candidate_0", "candidate_1"})


@dataclass(frozen=True, slots=True)
class QuestionMaterial:
    """Questions, the votes that came with them, and notes to the owner about both.

    `source` holds the questions of which these are the different ones, if there are others.
    """

    questions: list[Question]
    votes: list[Event] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source: list[Question] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """A digest of the source, by which it is recognised when the same folder is opened again."""
        return digest(*(question.key for question in self.source or self.questions))


def from_file(path: Path, columns: tuple[str, str, str] | None = None) -> QuestionMaterial:
    """Load a file: an export of Argilla or Label Studio, preferences in any format, or pairs without a choice."""
    if not label_imports.is_export(path):
        return from_rows(path)
    imported = label_imports.read(path, columns)
    source = list({question.key: question for question in imported.questions}.values())
    unique = distinct(source)
    votes = _votes_on(unique, source, imported.votes)
    people = {vote.annotator for vote in imported.votes}
    notes = [f"votes imported: {len(votes)} (annotators: {len(people)})"]
    if repeated := imported.repeated + len(imported.votes) - len(votes):
        notes.append(f"{repeated} earlier votes of the same person on the same pair were left out")
    if imported.unread:
        values = ", ".join(f"{value} ({count})" for value, count in imported.unread.most_common(5))
        notes.append(f"{imported.unread.total()} answers are not votes and were left out: {values}")
    return QuestionMaterial(unique, votes, notes + _repeated(imported.questions, unique), source)


def _votes_on(unique: Sequence[Question], source: Sequence[Question], votes: Sequence[Event]) -> list[Event]:
    """Return the votes, those on a repeated pair as votes on the question that is kept; the latest of each person."""
    kept = {question.pair_key: question for question in unique}
    by_key = {question.key: question for question in source}
    latest: dict[tuple[str, str], Event] = {}
    for vote in votes:
        question = by_key[vote.item]
        target = kept[question.pair_key]
        first = vote.body["first"] if question.a == target.a else other(vote.body["first"])
        moved = dataclasses.replace(vote, item=target.key, body={**vote.body, "first": first})
        earlier = latest.get((vote.annotator, target.key))
        latest[vote.annotator, target.key] = earlier if earlier and earlier.at > vote.at else moved
    return list(latest.values())


def from_rows(path: Path, gold: bool = False) -> QuestionMaterial:
    """Load a file of preferences, in any format. An existing choice is kept and never shown.

    A bad row is an error. A pair of identical answers is left out, because there is nothing to ask.
    """
    if not gold and _is_unjudged(path):
        return _unjudged(path)
    reading = datasets.read([str(path)], "preference")
    same = [row for row in reading.dropped if row.category == "equal candidates"]
    bad = [row for row in reading.dropped if row.category != "equal candidates"]
    pairs = row_reader.kept(dataclasses.replace(reading, dropped=bad))
    loaded = [questions.from_preference(pair, gold) for pair in pairs]
    unique = distinct(loaded)
    return QuestionMaterial(unique, notes=_identical(len(same)) + _repeated(loaded, unique))


def _is_unjudged(path: Path) -> bool:
    """Return whether the first row is a pair without a choice, as in skips.jsonl."""
    first = next((row for _, row in row_sources.rows(str(path)) if isinstance(row, dict)), {})
    return first.keys() >= PAIR and first.get("choice") is None


def _unjudged(path: Path) -> QuestionMaterial:
    """Load pairs without a choice, each read as if it were a tie. Identical answers are left out."""
    loaded, same = [], 0
    for number, row in row_sources.rows(str(path)):
        try:
            if isinstance(row, str) or row.get("choice") is not None:
                raise layouts.Unusable(
                    row if isinstance(row, str) else "the row has a choice, but the first row of the file has none"
                )
            loaded.append(questions.from_preference(layouts.gcpc_preference({**row, "choice": "tie"})))
        except layouts.Unusable as reason:
            if str(reason).startswith("equal candidates:"):
                same += 1
                continue
            raise DataError(f"{path}:{number}: {reason}") from None
    unique = distinct([dataclasses.replace(question, imported=None) for question in loaded])
    return QuestionMaterial(unique, notes=_identical(same) + _repeated(loaded, unique))


def from_predictions(
    a: Path, b: Path, prompts: Path | None = None, models: tuple[str, str] = ("a", "b"), instruction: str = ""
) -> QuestionMaterial:
    """Load the pairs of answers in two prediction files. The file of their prompts, if given, adds turns and tags."""
    answers = {side: predictions.read(predictions.prediction_file(path)) for side, path in (("a", a), ("b", b))}
    known = datasets.load_prompts(prompts) if prompts is not None else []
    sides = predictions.join(answers, prompts=known)
    if known:
        sides["a"] = predictions.with_prompts(sides["a"], known)
    opening = instruction + SEPARATOR if instruction else ""
    pairs = zip(sides["a"], sides["b"], strict=True)
    source = [_question(first, second, models, opening) for first, second in pairs]
    unique = distinct(source)
    return QuestionMaterial(unique, notes=_repeated(source, unique), source=source)


def _question(a: Answer, b: Answer, models: tuple[str, str], opening: str) -> Question:
    """Return the question about two answers. `opening` is the instruction with its separator, if there is one."""
    is_instructed = bool(opening) and a.prompt.startswith(opening)
    instruction = opening.removesuffix(SEPARATOR) if is_instructed else ""
    context = a.prompt.removeprefix(opening) if is_instructed else a.prompt
    prompt = a.prompt_record or Prompt(input_text=context, id=a.id)
    extra = dict(prompt.extra) | ({"tags": list(a.tags)} if a.tags else {})
    return Question(a.id, prompt, a.text, b.text, *models, instruction, context, extra=extra)


def from_run(folder: Path) -> QuestionMaterial:
    """Load the tuned model's answers (a) and the base's (b) to a run's test prompts."""
    run = RunDirectory(folder)
    instruction = recipe.load(run.recipe)[0].instruction or ""
    tuned, base = run.predictions("tuned"), run.predictions("base")
    for path in (tuned, base):
        if not path.exists():
            raise PlatformError(f"{path}: does not exist yet; finish the run: preferent run {run.recipe}")
    return from_predictions(tuned, base, run.prompts("test"), ("tuned", "base"), instruction)


def distinct(questions: Sequence[Question]) -> list[Question]:
    """Return the questions without repetitions, which ask about an earlier pair in either order."""
    unique: dict[str, Question] = {}
    for question in questions:
        unique.setdefault(question.pair_key, question)
    return list(unique.values())


def _identical(count: int) -> list[str]:
    return [f"{count} rows with identical answers were left out"] if count else []


def _repeated(questions: Sequence[Question], unique: Sequence[Question]) -> list[str]:
    count = len(questions) - len(unique)
    return [f"{count} rows repeat an earlier pair, which is asked once"] if count else []
