"""Where questions come from: a run, two files of predictions, rows of preferences, or the exports of other tools."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preferent.config import recipe
from preferent.data import datasets, predictions
from preferent.data.formats import layouts, row_reader, row_sources
from preferent.data.types import Prompt, digest
from preferent.errors import DataError, PlatformError
from preferent.labeling import label_imports, questions
from preferent.labeling.events import Event
from preferent.labeling.questions import Question

PAIR = frozenset({"candidate_0", "candidate_1"})


@dataclass(frozen=True, slots=True)
class QuestionMaterial:
    """What there is to ask, the votes that came with it, and what the owner should be told about both."""

    questions: list[Question]
    votes: list[Event] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return digest(*(each.key for each in self.questions))


def from_file(path: Path, columns: tuple[str, str, str] | None = None) -> QuestionMaterial:
    """The pairs in a file: an export of Argilla or Label Studio, preferences in any format, or pairs without choice."""
    if not label_imports.is_foreign(path):
        return from_rows(path)
    found = label_imports.read(path, columns)
    once = list({each.key: each for each in found.questions}.values())
    notes = [f"{len(found.votes)} votes taken over, of {len({vote.annotator for vote in found.votes})} people"]
    if found.repeated:
        notes.append(f"{found.repeated} votes of somebody who voted again on the same pair were left out")
    if found.unread:
        values = ", ".join(f"{value} ({count})" for value, count in found.unread.most_common(5))
        notes.append(f"{found.unread.total()} answers are no vote and were left out: {values}")
    return QuestionMaterial(once, found.votes, notes + _repeated(found.questions, once))


def from_rows(path: Path, gold: bool = False) -> QuestionMaterial:
    """The pairs in a file of preferences, in any format; a choice that is there is kept, and shown to nobody.

    A bad row is an error, but for a pair of identical answers: there is nothing to ask, and nothing to train on.
    """
    if not gold and _is_unjudged(path):
        return _unjudged(path)
    reading = datasets.read([str(path)], "preference")
    same = [row for row in reading.dropped if row.category == "equal candidates"]
    bad = [row for row in reading.dropped if row.category != "equal candidates"]
    pairs = row_reader.kept(dataclasses.replace(reading, dropped=bad))
    asked = [questions.from_preference(pair, gold) for pair in pairs]
    once = distinct(asked)
    return QuestionMaterial(once, notes=_same(len(same)) + _repeated(asked, once))


def _is_unjudged(path: Path) -> bool:
    """Whether the first row is a pair without a choice, as it also stands in skips.jsonl."""
    first = next((row for _, row in row_sources.rows(str(path)) if isinstance(row, dict)), {})
    return first.keys() >= PAIR and first.get("choice") is None


def _unjudged(path: Path) -> QuestionMaterial:
    """Pairs that say nothing of which is better; each is read as if it were a tie. Equal answers are left out."""
    asked, same = [], 0
    for number, row in row_sources.rows(str(path)):
        try:
            if isinstance(row, str) or row.get("choice") is not None:
                raise layouts.Unusable(row if isinstance(row, str) else "a choice: the first row of the file has none")
            asked.append(questions.from_preference(layouts.gcpc_preference({**row, "choice": "tie"})))
        except layouts.Unusable as reason:
            if str(reason).startswith("equal candidates:"):
                same += 1
                continue
            raise DataError(f"{path}:{number}: {reason}") from None
    once = distinct([dataclasses.replace(each, imported=None) for each in asked])
    return QuestionMaterial(once, notes=_same(same) + _repeated(asked, once))


def from_predictions(
    a: Path, b: Path, prompts: Path | None = None, models: tuple[str, str] = ("a", "b"), instruction: str = ""
) -> QuestionMaterial:
    """The pairs of answers in two prediction files, with the prompts as the data have them if their file is given."""
    read = {side: predictions.read(predictions.prediction_file(path)) for side, path in (("a", a), ("b", b))}
    asked = datasets.load_prompts(prompts) if prompts is not None else []
    sides = predictions.join(read, prompts=asked)
    if asked:
        sides["a"] = predictions.with_prompts(sides["a"], asked)
    opening = f"{instruction}\n\n\n" if instruction else ""
    found = []
    for one, other in zip(sides["a"], sides["b"], strict=True):
        told = bool(opening) and one.prompt.startswith(opening)
        context = one.prompt.removeprefix(opening) if told else one.prompt
        prompt = one.prompt_record or Prompt(input_text=context, id=one.id)
        told_by = instruction if told else ""
        extra = dict(prompt.extra) | ({"tags": list(one.tags)} if one.tags else {})
        found.append(Question(one.id, prompt, one.text, other.text, *models, told_by, context, extra=extra))
    return QuestionMaterial(found)


def from_run(folder: Path) -> QuestionMaterial:
    """The tuned model's answers (a) to a run's test prompts against the base's (b)."""
    asked, _ = recipe.load(folder / "recipe.yaml")
    files = [folder / "predictions" / side / "text.jsonl" for side in ("tuned", "base")]
    for file in files:
        if not file.exists():
            raise PlatformError(f"{file}: is not there yet; finish the run: preferent run {folder / 'recipe.yaml'}")
    prompts = folder / "data/prompt/test.jsonl"
    return from_predictions(files[0], files[1], prompts, ("tuned", "base"), asked.instruction or "")


def distinct(questions: Sequence[Question]) -> list[Question]:
    """The questions without those that ask again what an earlier one asked, whichever answer stood first."""
    found: dict[str, Question] = {}
    for each in questions:
        found.setdefault(digest(each.prompt.key, *sorted((each.a, each.b))), each)
    return list(found.values())


def _same(number: int) -> list[str]:
    return [f"{number} rows with identical answers left out"] if number else []


def _repeated(questions: Sequence[Question], once: Sequence[Question]) -> list[str]:
    more = len(questions) - len(once)
    return [f"{more} rows ask again what an earlier one asks, and are asked once"] if more else []
