"""Collect preferences from people: check the options, fill the database, serve the page, and export the votes."""

import secrets
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preferent.data.judgments import read
from preferent.data.types import Judgment
from preferent.errors import DataError, PlatformError, UsageError
from preferent.labeling import database, label_exports, selection
from preferent.labeling.database import Store
from preferent.labeling.events import histories
from preferent.labeling.questions import Asks
from preferent.labeling.selection import Method
from preferent.labeling.sources import answer_sources, question_sources
from preferent.labeling.sources.question_sources import QuestionMaterial
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
    asks: Asks = "pairs"

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
        """The settings to store. A seed is included only if one was given, what is asked only if it is not pairs."""
        seed = {} if self.seed is None else {"seed": self.seed}
        until = {} if self.until is None else {"until": self.until}
        asks = {"asks": self.asks} if self.asks != "pairs" else {}
        return {"select": self.select, "number": self.number, "gold_share": self.gold_share} | seed | until | asks


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
    thumbs: bool = False,
) -> None:
    """Serve a page that asks people until a signal says to stop, and then export their votes.

    It asks which of two answers is better or, with `thumbs`, whether one answer is good. The questions come from a run
    (`folder`), from a `file`, from two files of `predictions`, or from a label folder (`folder`) that was made before.
    The same arguments continue where people stopped, with the same links. A label folder that was made from other
    questions is refused. With `browser` the first link is opened.
    """
    asks: Asks = "thumbs" if thumbs else "pairs"
    place = _label_folder(folder, out, asks)
    until = selection.rule(until_width, until_decided)
    if thumbs:
        _check_thumbs(select, judgments, until, strengths, columns)
    material = _material(folder, file, predictions, prompts, models, columns, asks)
    controls = _controls(gold, asks)
    _check_sampling(select, judgments, until, bool(annotators) or overlap != 1)
    if port is not None and not 0 <= port < 2**16:
        raise UsageError(f"--port {port}: must be a number from 0 to 65535; 0 chooses a free port")
    said = _judged(folder, judgments) if until is not None or select == "informative" else []
    plan = LabelingPlan(select, number, said, gold_share, seed, until, asks)
    team = _team(annotators, overlap, strengths, host)
    try:
        from preferent.labeling import server
    except ModuleNotFoundError:
        raise PlatformError("label: needs packages that are not installed; pip install starlette uvicorn") from None
    server.origins(host, 0, url)  # wrong addresses are refused before any file is made
    with stages.locked(place, "labels"):
        store = Store(place, asks=asks)
        _fill(store, place, material, controls, plan)
        listener = server.listen(host, port, store.settings().get("port"))
        store.set(team | {"port": listener.getsockname()[1]})
        names = [*team["annotators"], *([""] if annotators else [])]
        _answered(store, place, listener, names, server.origins(host, listener.getsockname()[1], url), browser)
        store.close()


def _answered(
    store: Store, place: Path, listener: socket.socket, names: Sequence[str], addresses: Sequence[str], browser: bool
) -> None:
    """Serve the page of a store until a signal says to stop; export the votes and print what they are."""
    from preferent.labeling import server
    from preferent.labeling.service import LabelingService

    service = LabelingService(store)
    print(f"{place}: {service.plan()}", flush=True)
    server.serve(service, place, listener, names, addresses, browser)
    interruption.stop().obey()
    print(f"{place}: {service.save(place)}; the same command goes on from here{service.until_now()}", flush=True)


def _check_thumbs(
    select: Method,
    judgments: Path | None,
    until: dict[str, Any] | None,
    strengths: int,
    columns: tuple[str, str, str] | None,
) -> None:
    """Refuse arguments that say something about two answers."""
    flags = {
        "--select informative": select == "informative",
        "--judgments": judgments is not None,
        "--until-width and --until-decided": until is not None,
        "--strengths": strengths != 0,
        "--columns": columns is not None,
    }
    for flag in (flag for flag, is_set in flags.items() if is_set):
        raise UsageError(f"{flag}: is about two answers, and --thumbs asks about one; leave one of them out")


def _controls(gold: Path | None, asks: Asks) -> QuestionMaterial:
    """Load the control questions, if there are any."""
    if gold is None:
        return QuestionMaterial([])
    return (answer_sources.from_file if asks == "thumbs" else question_sources.from_rows)(gold, gold=True)


def _judged(folder: Path | None, judgments: Path | None) -> list[Judgment]:
    """Return the judgments in a file, or without one those of the run's own comparison."""
    if folder and judgments is None and (compared := RunDirectory(folder).comparison.judgments).exists():
        judgments = compared
    return read(judgments) if judgments else []


def _check_sampling(select: Method, judgments: Path | None, until: dict[str, Any] | None, is_team: bool) -> None:
    """Refuse judgments that nothing reads, and a rule to stop for several people, whose votes have no common order."""
    if judgments is not None and select != "informative" and until is None:
        raise UsageError(
            f"--judgments {judgments}: is used only by --select informative and --until-…; add one, or omit the file"
        )
    if until is not None and is_team:
        raise UsageError("--until-width and --until-decided: are for one person; leave out --annotators and --overlap")


def export(folder: Path, asks: Asks = "pairs") -> str:
    """Write the files of a label folder, or of a run's label folder, and return a summary of them.

    A server may be running on the folder.
    """
    place = _existing(folder, asks)
    store = Store(place, asks=asks)
    if store.is_new:
        raise DataError(f"{place / database.NAMES[asks]}: is empty; restore it from a copy, or remove it to ask anew")
    exports = label_exports.collect(store)
    store.close()
    label_exports.write(exports, place)
    return f"{place}: {exports}"


def recover(folder: Path, asks: Asks = "pairs") -> str:
    """Write the votes of a damaged label folder, up to the damage, to files in `recovered`; return a summary."""
    place = _existing(folder, asks)
    store = Store(place, check=False, asks=asks)
    settings, questions, past = store.recovered()
    store.close()
    votes = histories(past)
    known = {"seed": 0, "annotators": sorted(votes), "overlap": 1, "gold_share": 0.0} | settings
    exports = label_exports.of(known | {"asks": asks}, questions, votes)
    target = place / "recovered"
    label_exports.write(exports, target)
    return f"{target}: up to the first damage, {len(questions)} questions and {len(past)} events; {exports}"


def _existing(folder: Path, asks: Asks) -> Path:
    """Return the folder of the votes that were given before."""
    place, name = _label_folder(folder, None, asks), database.NAMES[asks]
    if (place / name).exists():
        return place
    hint = ", or add --thumbs" if any((path / database.NAMES["thumbs"]).exists() for path in (folder, place)) else ""
    raise UsageError(f"{place}: is not a label folder: it has no {name}; run `preferent label` first{hint}")


def _label_folder(folder: Path | None, out: Path | None, asks: Asks) -> Path:
    """Return the folder of the votes: `out`, or a label folder that was made before, or that of a run."""
    if out is not None:
        return out
    if folder is None:
        raise UsageError("label: no folder for the votes; add --out DIR")
    return folder if (folder / database.NAMES[asks]).exists() else RunDirectory(folder).labels


def _material(
    folder: Path | None,
    file: Path | None,
    predictions: tuple[Path, Path] | None,
    prompts: Path | None,
    models: tuple[str, str],
    columns: tuple[str, str, str] | None,
    asks: Asks,
) -> QuestionMaterial | None:
    """Load the questions; return None if the folder has them already."""
    if sum(source is not None for source in (folder, file, predictions)) != 1:
        raise UsageError("label: needs exactly one source of questions: a run, --file FILE or --predictions A B")
    if file is not None:
        return answer_sources.from_file(file) if asks == "thumbs" else question_sources.from_file(file, columns)
    if predictions is None and folder is not None and (folder / database.NAMES[asks]).exists():
        return None
    pairs = _pairs(folder, predictions, prompts, models)
    return answer_sources.of_pairs(pairs) if asks == "thumbs" else pairs


def _pairs(
    folder: Path | None, predictions: tuple[Path, Path] | None, prompts: Path | None, models: tuple[str, str]
) -> QuestionMaterial:
    """Load the pairs of answers of a run, or of two files of predictions."""
    if predictions is not None:
        return question_sources.from_predictions(*predictions, prompts, models)
    assert folder is not None
    if not RunDirectory(folder).is_run():
        raise UsageError(
            f"{folder}: is neither a run directory nor a label folder; give the folder of `preferent run --out` or of "
            "`preferent label --out`, with --thumbs if it was made with it"
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
        raise UsageError(
            f"{place}: there is nothing to ask: every pair has identical answers; tune further, "
            "or let answers be drawn (infer.sampling_strategy: temperature_sampling)"
        )
    keys = {question.key for question in chosen}
    store.create(fixed, [*chosen, *controls.questions], [vote for vote in material.votes if vote.item in keys])
    for note in [*material.notes, *controls.notes]:
        print(note, file=sys.stderr)
