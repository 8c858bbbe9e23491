"""Where questions come from: a run, two files of predictions, rows of preferences, or the exports of other tools."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preferent import dataset, recipe
from preferent.dataset import layout, source
from preferent.error import DataError, PlatformError
from preferent.label import foreign, question
from preferent.label.event import Event
from preferent.label.question import Question
from preferent.record import Prompt, digest

PAIR = frozenset({"candidate_0", "candidate_1"})


@dataclass(frozen=True, slots=True)
class Material:
    """What there is to ask, the votes that came with it, and what the owner should be told about both."""

    questions: list[Question]
    votes: list[Event] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return digest(*(each.key for each in self.questions))


def from_file(path: Path, columns: tuple[str, str, str] | None = None) -> Material:
    """The pairs in a file: an export of Argilla or Label Studio, preferences in any format, or pairs without choice."""
    if not foreign.is_foreign(path):
        return from_rows(path)
    found = foreign.read(path, columns)
    once = list({each.key: each for each in found.questions}.values())
    notes = [f"{len(found.votes)} votes taken over, of {len({vote.annotator for vote in found.votes})} people"]
    if found.unread:
        values = ", ".join(f"{value} ({count})" for value, count in found.unread.most_common(5))
        notes.append(f"{found.unread.total()} answers are no vote and were left out: {values}")
    return Material(once, found.votes, notes + _repeated(found.questions, once))


def from_rows(path: Path, gold: bool = False) -> Material:
    """The pairs in a file of preferences, in any format; a choice that is there is kept, and shown to nobody.

    A bad row is an error, but for a pair of identical answers: there is nothing to ask, and nothing to train on.
    """
    if not gold and _is_unjudged(path):
        return _unjudged(path)
    reading = dataset.read([str(path)], "preference")
    same = [row for row in reading.dropped if row.category == "equal candidates"]
    bad = [row for row in reading.dropped if row.category != "equal candidates"]
    pairs = dataset.kept(dataclasses.replace(reading, dropped=bad))
    asked = [question.from_preference(pair, gold) for pair in pairs]
    once = distinct(asked)
    notes = [f"{len(same)} rows with identical answers left out"] if same else []
    return Material(once, notes=notes + _repeated(asked, once))


def _is_unjudged(path: Path) -> bool:
    """Whether the first row is a pair without a choice."""
    first = next((row for _, row in source.rows(str(path)) if isinstance(row, dict)), {})
    return first.keys() >= PAIR and "choice" not in first


def _unjudged(path: Path) -> Material:
    """Pairs that say nothing of which is better; each is read as if it were a tie."""
    asked = []
    for number, row in source.rows(str(path)):
        try:
            if isinstance(row, str) or "choice" in row:
                raise layout.Unusable(row if isinstance(row, str) else "a choice: the first row of the file has none")
            asked.append(question.from_preference(layout.gcpc_preference({**row, "choice": "tie"})))
        except layout.Unusable as reason:
            raise DataError(f"{path}:{number}: {reason}") from None
    once = distinct([dataclasses.replace(each, imported=None) for each in asked])
    return Material(once, notes=_repeated(asked, once))


def from_predictions(
    a: Path, b: Path, prompts: Path | None = None, models: tuple[str, str] = ("a", "b"), instruction: str = ""
) -> Material:
    """The pairs of answers in two prediction files, with the prompts as the data have them if their file is given."""
    sides = [_predictions(path) for path in (a, b)]
    if sides[0].keys() != sides[1].keys():
        only = [len(sides[0].keys() - sides[1].keys()), len(sides[1].keys() - sides[0].keys())]
        raise DataError(
            f"{a} and {b} do not answer the same prompts: {only[0]} ids are only in the first, {only[1]} only in the "
            "second; make both with the same prompts file"
        )
    known = {each.id or each.key: each for each in dataset.load_prompts(prompts)} if prompts else {}
    opening = f"{instruction}\n\n\n" if instruction else ""
    found = []
    for id, (text, answer) in sides[0].items():
        told = bool(opening) and text.startswith(opening)
        context = text.removeprefix(opening) if told else text
        prompt = known.get(id, Prompt(input_text=context, id=id))
        found.append(Question(id, prompt, answer, sides[1][id][1], *models, instruction if told else "", context))
    return Material(found)


def from_run(folder: Path) -> Material:
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


def _repeated(questions: Sequence[Question], once: Sequence[Question]) -> list[str]:
    more = len(questions) - len(once)
    return [f"{more} rows ask again what an earlier one asks, and are asked once"] if more else []


def _predictions(path: Path) -> Mapping[str, tuple[str, str]]:
    """Prompt and answer by id."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    asked = [row["inputs"]["inputs_pretokenized"] for row in rows]
    return {
        str(row.get("id") or digest(text)): (text, row["prediction"]) for row, text in zip(rows, asked, strict=True)
    }
