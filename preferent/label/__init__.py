"""People give preferences: a page, a server and a database, and the files that come of it."""

import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preferent import judge, run
from preferent.error import PlatformError, UsageError
from preferent.label import harvest, selection, source, store
from preferent.label.selection import Way
from preferent.label.source import Material
from preferent.label.store import Store
from preferent.record import digest

ALONE = "me"
Columns = tuple[str, str, str]


def serve(
    folder: Path | None = None,
    file: Path | None = None,
    predictions: tuple[Path, Path] | None = None,
    prompts: Path | None = None,
    models: tuple[str, str] = ("a", "b"),
    columns: Columns | None = None,
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
    if folder and judgments is None and (folder / "comparison/judgments.jsonl").exists():
        judgments = folder / "comparison/judgments.jsonl"
    team = _team(annotators, overlap, strengths, gold_share, number, host)
    try:
        from preferent.label import server
    except ModuleNotFoundError:
        raise PlatformError("label needs packages that are not here: pip install 'preferent[ui]'") from None
    from preferent.label.desk import Desk

    with run.locked(place):
        opened = Store(place)
        asked = {"select": select, "number": number, "gold_share": gold_share, "seed": seed}
        _fill(opened, place, material, asked, judgments, gold)
        listener = server.listen(host, port, opened.settings().get("port"))
        opened.set(team | {"port": listener.getsockname()[1]})
        desk = Desk(opened)
        print(f"{place}: {desk.plan()}", flush=True)
        server.serve(desk, place, listener, [*team["annotators"], *([""] if annotators else [])], url)
        found = desk.harvest()
        harvest.write(found, place)
        opened.close()
        print(f"{place}: {found}", flush=True)


def export(folder: Path) -> str:
    """Write the files of a label folder, or of the one in a run, from the votes that are there; says what is in them.

    A server may be running there.
    """
    place = _place(folder, None)
    if not (place / store.NAME).exists():
        raise UsageError(f"{place}: nobody has been asked anything here: there is no {store.NAME}")
    opened = Store(place)
    found = harvest.collect(opened)
    opened.close()
    harvest.write(found, place)
    return f"{place}: {found}"


def _place(folder: Path | None, out: Path | None) -> Path:
    """The folder of the votes: `out`, or the run's own, or one that was made before."""
    if out is not None:
        return out
    if folder is None:
        raise UsageError("label: where are the votes to go? Give --out DIR")
    return folder if (folder / store.NAME).exists() else folder / "labels"


def _material(
    folder: Path | None,
    file: Path | None,
    predictions: tuple[Path, Path] | None,
    prompts: Path | None,
    models: tuple[str, str],
    columns: Columns | None,
) -> Material | None:
    """What there is to ask; None where it is in the folder already."""
    if sum(given is not None for given in (folder, file, predictions)) != 1:
        raise UsageError("label: what is to be asked? Give one of: a run, --file FILE, --predictions A B")
    if file is not None:
        return source.from_file(file, columns)
    if predictions is not None:
        return source.from_predictions(*predictions, prompts, models)
    assert folder is not None
    if (folder / store.NAME).exists():
        return None
    if not (folder / "recipe.yaml").is_file():
        raise UsageError(f"{folder}: is no run directory, and no folder that label made; give what `run --out` named")
    return source.from_run(folder)


def _team(
    annotators: Sequence[str], overlap: int, strengths: int, gold_share: float, number: int | None, host: str
) -> dict[str, Any]:
    """Who is asked how; what may be another each time."""
    names = list(annotators) or [ALONE]
    if len(set(names)) < len(names) or not all(name.strip() and name.isprintable() for name in names):
        raise UsageError(f"--annotators {','.join(names)}: every name is there once, and not empty")
    if host not in ("127.0.0.1", "localhost", "::1") and not annotators:
        raise UsageError(f"--host {host}: others can reach it there; say who they are: --annotators NAME,NAME")
    wrong = {
        f"--overlap {overlap}": overlap < 1,
        f"--strengths {strengths}": not 0 <= strengths <= 9 or strengths == 1,
        f"--gold-share {gold_share}": not 0 <= gold_share <= 0.5,
        f"--number {number}": number is not None and number < 1,
    }
    if bad := [word for word, is_wrong in wrong.items() if is_wrong]:
        raise UsageError(f"{bad[0]}: overlap and number are 1 or more, strengths 0 or 2 to 9, gold-share 0 to 0.5")
    if overlap > len(names):
        print(f"overlap {overlap}: there are {len(names)} annotators; each question is for all", file=sys.stderr)
    return {"annotators": names, "overlap": overlap, "strengths": strengths}


def _fill(
    opened: Store,
    place: Path,
    material: Material | None,
    asked: Mapping[str, Any],
    judgments: Path | None,
    gold: Path | None,
) -> None:
    """Put the questions into a new store; into one that is there, nothing: it must be the same ones."""
    if material is None:
        return
    controls = source.from_rows(gold, gold=True) if gold else Material([])
    fixed = {name: value for name, value in asked.items() if name != "seed" or value is not None}
    fixed |= {"questions": material.fingerprint, "gold": digest(controls.fingerprint)}
    if not opened.is_new:
        kept = opened.settings()
        if changed := [
            f"  {name}: was {kept[name]}, is now {fixed[name]}" for name in fixed if kept[name] != fixed[name]
        ]:
            lines = "\n".join(changed)
            raise UsageError(
                f"{place}: people were asked something else here:\n{lines}\nGo back to it, or use another --out"
            )
        return
    fixed.setdefault("seed", secrets.randbits(48))
    judged = judge.read(judgments) if judgments and asked["select"] == "informative" else []
    chosen = selection.choose(material.questions, asked["number"], asked["select"], judged, fixed["seed"])
    if not chosen:
        raise UsageError("label: there is no pair to ask about")
    keys = {each.key for each in chosen}
    votes = [vote for vote in material.votes if vote.item in keys]
    opened.create(fixed, [*chosen, *controls.questions], votes)
    for note in [*material.notes, *controls.notes]:
        print(note, file=sys.stderr)
