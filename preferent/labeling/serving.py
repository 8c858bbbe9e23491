"""Collect preferences from people: check the options, fill the database, serve the page, and export the votes."""

import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preferent.data.judgments import read
from preferent.data.types import Judgment
from preferent.errors import DataError, PlatformError, UsageError
from preferent.labeling import database, label_exports, question_sources, selection
from preferent.labeling.database import Store
from preferent.labeling.events import histories
from preferent.labeling.question_sources import QuestionMaterial
from preferent.labeling.selection import Method
from preferent.runs import interruption, stages
from preferent.runs.directory import RunDirectory

ALONE = "me"


@dataclass(frozen=True)
class LabelingPlan:
    """The selection of pairs and the share of control questions. Neither can change once people have begun."""

    select: Method
    number: int | None
    judgments: Sequence[Judgment]
    gold_share: float
    seed: int | None
    until: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.select not in selection.METHODS:
            raise UsageError(f"--select {self.select}: is unknown; choose {' or '.join(selection.METHODS)}")
        if self.number is not None and self.number < 1:
            raise UsageError(f"--number {self.number}: must be the number of pairs to ask, 1 or more")
        if self.select == "informative" and self.number is None and self.until is None:
            raise UsageError(
                "--select informative: says which to ask of many; add --number N, --until-width or --until-decided"
            )
        if self.select == "informative" and not self.judgments:
            raise UsageError("--select informative: needs judgments; add --judgments FILE, as `compare` writes it")
        if not 0 <= self.gold_share <= 0.5:
            raise UsageError(f"--gold-share {self.gold_share}: must be the share of control questions, 0 to 0.5")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings to store. A seed is included only if one was given."""
        seed = {} if self.seed is None else {"seed": self.seed}
        until = {} if self.until is None else {"until": self.until}
        return {"select": self.select, "number": self.number, "gold_share": self.gold_share} | seed | until


def serve(
    folder: Path | None = None,
    file: Path | None = None,
    predictions: tuple[Path, Path] | None = None,
    prompts: Path | None = None,
    models: tuple[str, str] = ("a", "b"),
    columns: tuple[str, str, str] | None = None,
    out: Path | None = None,
    select: Method = "random",
    judgments: Path | None = None,
    number: int | None = None,
    annotators: Sequence[str] = (),
    overlap: int = 1,
    strengths: int = 0,
    gold: Path | None = None,
    gold_share: float = 0.1,
    seed: int | None = None,
    until_width: float | None = None,
    until_decided: bool = False,
    host: str = "127.0.0.1",
    port: int | None = None,
    url: str | None = None,
    browser: bool = False,
) -> None:
    """Serve a page that asks people until a signal says to stop, and then export their votes.

    The questions come from a run (`folder`), from the pairs in a `file`, from two files of `predictions`, or from a
    label folder (`folder`) that was made before. The same arguments continue where people stopped, with the same
    links. A label folder that was made from other questions is refused. With `browser` the first link is opened.
    """
    place = _label_folder(folder, out)
    material = _material(folder, file, predictions, prompts, models, columns)
    controls = question_sources.from_rows(gold, gold=True) if gold else QuestionMaterial([])
    until = selection.rule(until_width, until_decided)
    if judgments is not None and select != "informative" and until is None:
        raise UsageError(
            f"--judgments {judgments}: is used only by --select informative and --until-…; add one, or omit the file"
        )
    if until is not None and (annotators or overlap != 1):
        raise UsageError("--until-width and --until-decided: are for one person; leave out --annotators and --overlap")
    if port is not None and not 0 <= port < 2**16:
        raise UsageError(f"--port {port}: must be a number from 0 to 65535; 0 chooses a free port")
    if folder and judgments is None and (compared := RunDirectory(folder).comparison.judgments).exists():
        judgments = compared
    used = judgments is not None and (until is not None or select == "informative")
    plan = LabelingPlan(select, number, read(judgments) if judgments and used else [], gold_share, seed, until)
    team = _team(annotators, overlap, strengths, host)
    try:
        from preferent.labeling import server
    except ModuleNotFoundError:
        raise PlatformError("label: needs packages that are not installed; pip install starlette uvicorn") from None
    from preferent.labeling.service import LabelingService

    server.origins(host, 0, url)  # wrong addresses are refused before any file is made
    with stages.locked(place, "labels"):
        store = Store(place)
        _fill(store, place, material, controls, plan)
        listener = server.listen(host, port, store.settings().get("port"))
        addresses = server.origins(host, listener.getsockname()[1], url)
        store.set(team | {"port": listener.getsockname()[1]})
        service = LabelingService(store)
        print(f"{place}: {service.plan()}", flush=True)
        server.serve(service, place, listener, [*team["annotators"], *([""] if annotators else [])], addresses, browser)
        interruption.stop().obey()
        print(f"{place}: {service.save(place)}; the same command goes on from here", flush=True)
        if (until_now := service.until_enough()) is not None:
            print(f"{place}: {until_now}", flush=True)
        store.close()


def export(folder: Path) -> str:
    """Write the files of a label folder, or of a run's label folder, and return a summary of them.

    A server may be running on the folder.
    """
    place = _label_folder(folder, None)
    if not (place / database.NAME).exists():
        raise UsageError(f"{place}: is not a label folder: it has no {database.NAME}; run `preferent label` first")
    store = Store(place)
    if store.is_new:
        raise DataError(f"{place / database.NAME}: is empty; restore it from a copy, or remove it to ask anew")
    exports = label_exports.collect(store)
    store.close()
    label_exports.write(exports, place)
    return f"{place}: {exports}"


def recover(folder: Path) -> str:
    """Write the votes of a damaged label folder, up to the damage, to files in `recovered`; return a summary."""
    place = _label_folder(folder, None)
    if not (place / database.NAME).exists():
        raise UsageError(f"{place}: is not a label folder: it has no {database.NAME}")
    store = Store(place, check=False)
    settings, questions, past = store.recovered()
    store.close()
    votes = histories(past)
    known = {"seed": 0, "annotators": sorted(votes), "overlap": 1, "gold_share": 0.0} | settings
    exports = label_exports.export(known, questions, votes)
    target = place / "recovered"
    label_exports.write(exports, target)
    return f"{target}: up to the first damage, {len(questions)} questions and {len(past)} events; {exports}"


def _label_folder(folder: Path | None, out: Path | None) -> Path:
    """Return the folder of the votes: `out`, or a label folder that was made before, or that of a run."""
    if out is not None:
        return out
    if folder is None:
        raise UsageError("label: no folder for the votes; add --out DIR")
    return folder if (folder / database.NAME).exists() else RunDirectory(folder).labels


def _material(
    folder: Path | None,
    file: Path | None,
    predictions: tuple[Path, Path] | None,
    prompts: Path | None,
    models: tuple[str, str],
    columns: tuple[str, str, str] | None,
) -> QuestionMaterial | None:
    """Load the questions; return None if the folder has them already."""
    if sum(source is not None for source in (folder, file, predictions)) != 1:
        raise UsageError("label: needs exactly one source of questions: a run, --file FILE or --predictions A B")
    if file is not None:
        return question_sources.from_file(file, columns)
    if predictions is not None:
        return question_sources.from_predictions(*predictions, prompts, models)
    assert folder is not None
    if (folder / database.NAME).exists():
        return None
    if not RunDirectory(folder).is_run():
        raise UsageError(
            f"{folder}: is neither a run directory nor a label folder; give the folder of `preferent run --out` or of "
            "`preferent label --out`"
        )
    return question_sources.from_run(folder)


def _team(annotators: Sequence[str], overlap: int, strengths: int, host: str) -> dict[str, Any]:
    """Return the settings that may change each time: the annotators, the overlap, and the scale of strength."""
    names = list(annotators) or [ALONE]
    if len(set(names)) < len(names) or not all(name.strip() and name.isprintable() for name in names):
        raise UsageError(f"--annotators {','.join(names)}: names must be unique, printable and not empty")
    if host not in ("127.0.0.1", "localhost", "::1") and not annotators:
        raise UsageError(f"--host {host}: makes the server reachable by others; name them with --annotators NAME,NAME")
    if overlap < 1:
        raise UsageError(f"--overlap {overlap}: must be the number of people per question, 1 or more")
    if not 0 <= strengths <= 9 or strengths == 1:
        raise UsageError(f"--strengths {strengths}: must be 2 to 9 levels, or 0 for no scale")
    if overlap > len(names):
        print(f"--overlap {overlap}: more than the {len(names)} annotators; all answer every question", file=sys.stderr)
    return {"annotators": names, "overlap": overlap, "strengths": strengths}


def _fill(
    store: Store, place: Path, material: QuestionMaterial | None, controls: QuestionMaterial, plan: LabelingPlan
) -> None:
    """Add the questions to a new store; check that an existing one has the same questions."""
    if material is None:
        return
    fixed = plan.settings | {"questions": material.fingerprint, "gold": controls.fingerprint}
    if not store.is_new:
        kept = store.settings()
        changed = [
            f"  {name}: was {kept.get(name)}, is now {new}" for name, new in fixed.items() if kept.get(name) != new
        ]
        if changed:
            lines = "\n".join(changed)
            raise UsageError(
                f"{place}: has other questions or settings:\n{lines}\nRestore them, or choose another folder with --out"
            )
        return
    fixed.setdefault("seed", secrets.randbits(48))
    select: Method = "random" if plan.until else plan.select
    chosen = selection.choose(material.questions, plan.number, select, plan.judgments, fixed["seed"])
    if plan.until:
        fixed["expected"] = selection.expected(chosen, plan.judgments)
    if all(question.identical for question in chosen):
        raise UsageError(f"{place}: there is nothing to ask: every pair has identical answers")
    keys = {question.key for question in chosen}
    store.create(fixed, [*chosen, *controls.questions], [vote for vote in material.votes if vote.item in keys])
    for note in [*material.notes, *controls.notes]:
        print(note, file=sys.stderr)
