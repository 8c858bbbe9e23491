"""Where questions come from: a run, two files of predictions, or rows of preferences."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from preferent import dataset
from preferent.error import DataError
from preferent.label import question
from preferent.label.question import Question
from preferent.record import Prompt, digest


def from_rows(path: Path, gold: bool = False) -> list[Question]:
    """The questions in a file of preferences, in any format; a bad row is an error."""
    pairs = dataset.kept(dataset.read([str(path)], "preference"))
    return distinct([question.from_preference(pair, gold) for pair in pairs])


def from_predictions(
    a: Path, b: Path, prompts: Path | None = None, models: tuple[str, str] = ("a", "b"), instruction: str = ""
) -> list[Question]:
    """The pairs of answers in two prediction files, with the prompts as the data have them where their file is given."""
    sides = [_predictions(path) for path in (a, b)]
    if sides[0].keys() != sides[1].keys():
        only = [len(sides[0].keys() - sides[1].keys()), len(sides[1].keys() - sides[0].keys())]
        raise DataError(f"{a} and {b} answer different prompts: {only[0]} and {only[1]} ids are only in one of them")
    known = {each.id or each.key: each for each in dataset.load_prompts(prompts)} if prompts else {}
    opening = f"{instruction}\n\n\n" if instruction else ""
    found = []
    for id, (text, answer) in sides[0].items():
        told = bool(opening) and text.startswith(opening)
        context = text.removeprefix(opening) if told else text
        prompt = known.get(id, Prompt(input_text=context, id=id))
        found.append(
            Question(id, prompt, answer, sides[1][id][1], *models, instruction if told else "", context)
        )
    return found


def from_run(folder: Path) -> list[Question]:
    """Tuned (a) against base (b) on the run's test prompts."""
    from preferent import recipe

    asked, _ = recipe.load(folder / "recipe.yaml")
    files = [folder / "predictions" / side / "text.jsonl" for side in ("tuned", "base")]
    prompts = folder / "data/prompt/test.jsonl"
    return from_predictions(files[0], files[1], prompts, ("tuned", "base"), asked.instruction or "")


def distinct(questions: Sequence[Question]) -> list[Question]:
    """The questions without those that ask again what an earlier one asked, whichever answer stood first."""
    found: dict[str, Question] = {}
    for each in questions:
        found.setdefault(digest(each.prompt.key, *sorted((each.a, each.b))), each)
    return list(found.values())


def _predictions(path: Path) -> Mapping[str, tuple[str, str]]:
    """Prompt and answer by id."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    asked = [row["inputs"]["inputs_pretokenized"] for row in rows]
    return {str(row.get("id") or digest(text)): (text, row["prediction"]) for row, text in zip(rows, asked, strict=True)}
