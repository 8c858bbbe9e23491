"""People give preferences: a page, a server and a database, and the files that come of it."""

import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preferent.data.judgments import read
from preferent.data.types import Judgment
from preferent.errors import PlatformError, UsageError
from preferent.labeling import database, label_exports, question_sources, selection
from preferent.labeling.database import Store
from preferent.labeling.question_sources import QuestionMaterial
from preferent.labeling.selection import Way
from preferent.runs import stages

ALONE = "me"


@dataclass(frozen=True)
class LabelingPlan:
    """Which of the pairs are asked, and among how many control questions; what stays as it is once people began."""

    select: Way
    number: int | None
    judgments: Sequence[Judgment]
    gold_share: float
    seed: int | None

    def __post_init__(self) -> None:
        if self.select not in selection.WAYS:
            raise UsageError(f"--select {self.select}: unknown; there are {' and '.join(selection.WAYS)}")
        if self.number is not None and self.number < 1:
            raise UsageError(f"--number {self.number}: is how many pairs are asked, 1 or more")
        if self.select == "informative" and self.number is None:
            raise UsageError("--select informative: how many of the pairs? Give --number N; without it all are asked")
        if self.select == "informative" and not self.judgments:
            raise UsageError("--select informative: by whose judgments? Give --judgments FILE, as `compare` writes it")
        if not 0 <= self.gold_share <= 0.5:
            raise UsageError(f"--gold-share {self.gold_share}: is the share of control questions, 0 to 0.5")

    @property
    def kept(self) -> dict[str, Any]:
        """What is remembered of it; a seed that nobody gave is drawn."""
        seed = {} if self.seed is None else {"seed": self.seed}
        return {"select": self.select, "number": self.number, "gold_share": self.gold_share} | seed


def serve(
    folder: Path | None = None,
    file: Path | None = None,
    predictions: tuple[Path, Path] | None = None,
    prompts: Path | None = None,
    models: tuple[str, str] = ("a", "b"),
    columns: tuple[str, str, str] | None = None,
    out: Path | None = None,
    select: Way = "random",
    judgments: Path | None = None,
    number: int | None = None,
    annotators: Sequence[str] = (),
    overlap: int = 1,
    strengths: int = 0,
    gold: Path | None = None,
    gold_share: float = 0.1,
    seed: int | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    url: str | None = None,
) -> None:
    """Ask people, in a page that is served until a signal says to stop; then export what they said.

    What is asked: the answers of a run (`folder`), the pairs in a `file`, two files of `predictions`, or, where
    `folder` is one that this made before, what was asked there. The same arguments again go on where people stopped,
    with the same links; a folder that was made from something else is refused.
    """
    place = _place(folder, out)
    material = _material(folder, file, predictions, prompts, models, columns)
    controls = question_sources.from_rows(gold, gold=True) if gold else QuestionMaterial([])
    if judgments is not None and select != "informative":
        raise UsageError(
            f"--judgments {judgments}: only --select informative looks at judgments; give it, or leave these"
        )
    if port is not None and not 0 <= port < 2**16:
        raise UsageError(f"--port {port}: is a number from 0 to 65535; 0 takes any that is free")
    if folder and judgments is None and (folder / "comparison/judgments.jsonl").exists():
        judgments = folder / "comparison/judgments.jsonl"
    plan = LabelingPlan(
        select, number, read(judgments) if judgments and select == "informative" else [], gold_share, seed
    )
    team = _team(annotators, overlap, strengths, host)
    try:
        from preferent.labeling import server
    except ModuleNotFoundError:
        raise PlatformError("label needs packages that are not here: pip install 'preferent[ui]'") from None
    from preferent.labeling.service import LabelingService

    server.origins(host, 0, url)  # refused before anything is made
    with stages.locked(place):
        opened = Store(place)
        _fill(opened, place, material, controls, plan)
        listener = server.listen(host, port, opened.settings().get("port"))
        addresses = server.origins(host, listener.getsockname()[1], url)
        opened.set(team | {"port": listener.getsockname()[1]})
        desk = LabelingService(opened)
        print(f"{place}: {desk.plan()}", flush=True)
        server.serve(desk, place, listener, [*team["annotators"], *([""] if annotators else [])], addresses)
        print(f"{place}: {desk.save(place)}", flush=True)
        opened.close()


def export(folder: Path) -> str:
    """Write the files of a label folder, or of the one in a run, from the votes that are there; says what is in them.

    A server may be running there.
    """
    place = _place(folder, None)
    if not (place / database.NAME).exists():
        raise UsageError(f"{place}: nobody has been asked anything here: there is no {database.NAME}")
    opened = Store(place)
    if opened.is_new:
        raise UsageError(f"{place}: nobody has been asked anything here yet")
    found = label_exports.collect(opened)
    opened.close()
    label_exports.write(found, place)
    return f"{place}: {found}"


def _place(folder: Path | None, out: Path | None) -> Path:
    """The folder of the votes: `out`, or the run's own, or one that was made before."""
    if out is not None:
        return out
    if folder is None:
        raise UsageError("label: where are the votes to go? Give --out DIR")
    return folder if (folder / database.NAME).exists() else folder / "labels"


def _material(
    folder: Path | None,
    file: Path | None,
    predictions: tuple[Path, Path] | None,
    prompts: Path | None,
    models: tuple[str, str],
    columns: tuple[str, str, str] | None,
) -> QuestionMaterial | None:
    """What there is to ask; None where it is in the folder already."""
    if sum(given is not None for given in (folder, file, predictions)) != 1:
        raise UsageError("label: what is to be asked? Give one of: a run, --file FILE, --predictions A B")
    if file is not None:
        return question_sources.from_file(file, columns)
    if predictions is not None:
        return question_sources.from_predictions(*predictions, prompts, models)
    assert folder is not None
    if (folder / database.NAME).exists():
        return None
    if not (folder / "recipe.yaml").is_file():
        raise UsageError(f"{folder}: is no run directory, and no folder that label made; give what `run --out` named")
    return question_sources.from_run(folder)


def _team(annotators: Sequence[str], overlap: int, strengths: int, host: str) -> dict[str, Any]:
    """Who is asked how; what may be another each time."""
    names = list(annotators) or [ALONE]
    if len(set(names)) < len(names) or not all(name.strip() and name.isprintable() for name in names):
        raise UsageError(f"--annotators {','.join(names)}: every name is there once, and not empty")
    if host not in ("127.0.0.1", "localhost", "::1") and not annotators:
        raise UsageError(f"--host {host}: others can reach it there; say who they are: --annotators NAME,NAME")
    if overlap < 1:
        raise UsageError(f"--overlap {overlap}: is how many people answer each question, 1 or more")
    if not 0 <= strengths <= 9 or strengths == 1:
        raise UsageError(f"--strengths {strengths}: a scale has 2 to 9 levels; 0 asks for none")
    if overlap > len(names):
        print(f"overlap {overlap}: there are {len(names)} annotators; each question is for all", file=sys.stderr)
    return {"annotators": names, "overlap": overlap, "strengths": strengths}


def _fill(
    opened: Store, place: Path, material: QuestionMaterial | None, controls: QuestionMaterial, plan: LabelingPlan
) -> None:
    """Put the questions into a new store; in one that is there, see that they are the same."""
    if material is None:
        return
    fixed = plan.kept | {"questions": material.fingerprint, "gold": controls.fingerprint}
    if not opened.is_new:
        kept = opened.settings()
        changed = [f"  {name}: was {kept[name]}, is now {fixed[name]}" for name in fixed if kept[name] != fixed[name]]
        if changed:
            lines = "\n".join(changed)
            raise UsageError(f"{place}: people were asked something else here:\n{lines}\nGo back, or use another --out")
        return
    fixed.setdefault("seed", secrets.randbits(48))
    chosen = selection.choose(material.questions, plan.number, plan.select, plan.judgments, fixed["seed"])
    if all(each.identical for each in chosen):
        raise UsageError(f"{place}: there is no pair of different answers to ask about")
    keys = {each.key for each in chosen}
    opened.create(fixed, [*chosen, *controls.questions], [vote for vote in material.votes if vote.item in keys])
    for note in [*material.notes, *controls.notes]:
        print(note, file=sys.stderr)
