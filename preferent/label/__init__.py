"""People give preferences: a page, a server and a database, and the files that come of it."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preferent import run
from preferent.error import PlatformError
from preferent.label import source
from preferent.label.question import Question

ALONE = "me"


def serve(
    folder: Path | None = None,
    file: Path | None = None,
    predictions: tuple[Path, Path] | None = None,
    prompts: Path | None = None,
    models: tuple[str, str] = ("a", "b"),
    out: Path | None = None,
    annotators: Sequence[str] = (),
    overlap: int = 1,
    strengths: int = 0,
    seed: int | None = None,
    gold: Path | None = None,
    gold_share: float = 0.1,
    host: str = "127.0.0.1",
    port: int | None = None,
    url: str | None = None,
) -> None:
    """Ask people, until a signal says to stop."""
    try:
        from preferent.label import server
    except ModuleNotFoundError:
        raise PlatformError("label needs a missing package: pip install 'preferent[ui]'") from None
    from preferent.label.desk import Desk
    from preferent.label.store import Store

    place = out or (folder or Path()) / "labels"
    with run.locked(place):
        store = Store(place)
        changing: dict[str, Any] = {
            "annotators": list(annotators) or [ALONE],
            "overlap": overlap,
            "strengths": strengths,
        }
        if store.is_new:
            questions: list[Question] = (
                source.from_rows(file)
                if file
                else source.from_predictions(*predictions, prompts, models)
                if predictions
                else source.from_run(folder or Path())
            )
            controls = source.from_rows(gold, gold=True) if gold else []
            fixed = {"seed": secrets.randbits(48) if seed is None else seed, "gold_share": gold_share}
            store.create(fixed | changing, [*questions, *controls])
        listener = server.listen(host, port, store.settings().get("port"))
        store.set(changing | {"port": listener.getsockname()[1]})
        names = changing["annotators"] + ([""] if annotators else [])
        server.serve(Desk(store), place, listener, names, url)
