"""Win rates in slices, and at equal length: where the verdict comes from."""

from collections.abc import Mapping
from typing import Any

from preferent.report import forest
from preferent.report.forest import Table, row
from preferent.report.jury import Juror

Figures = Mapping[str, Any]


def slices(metrics: Figures, jury: Mapping[str, Juror]) -> list[Table]:
    """A table for each judge whose verdicts were looked at in slices: all of them first, then by tag and length."""
    return [
        _slices(jury[name], found) for name, found in metrics.get("judges", {}).items() if found.get("slices")
    ]  # fmt: skip


def _slices(juror: Juror, found: Figures) -> Table:
    heads = ("Prompts", "Win rate", "95 % interval", "Verdicts", "Prompts", "p", "p, Holm")
    rows = [row("all", found["win_rate"], found["interval"], str(found["n"]), str(found["prompts"]), "", "")]
    for one in found["slices"]:
        p, holm = one.get("p"), one.get("p_holm")
        clear = holm is not None and holm < 0.05
        side = "tuned better" if one["win_rate"] > 0.5 else "tuned worse"
        rows.append(
            row(
                one["name"],
                one["win_rate"],
                one["interval"],
                *(str(one["n"]), str(one["prompts"])),
                *("" if value is None else forest.probability(value) for value in (p, holm)),
                colour=juror.colour,
                tag=side if clear else "",
                warns=one["win_rate"] < 0.5,
            )
        )
    return Table(f"Judged by {juror.name}", heads, rows)


def lengths(metrics: Figures, jury: Mapping[str, Juror]) -> Table | None:
    """Win rates beside what they would be at equal length."""
    rows = []
    for name, found in metrics.get("judges", {}).items():
        if controlled := found.get("length_controlled"):
            juror, extreme = jury[name], bool(controlled.get("extreme"))
            rows.append(
                row(
                    *(juror.title, controlled["win_rate"], controlled.get("interval"), forest.told(found)),
                    colour=juror.colour,
                    tag="length explains much" if extreme else "",
                    warns=extreme,
                )
            )
    heads = ("Who judged", "At equal length", "95 % interval", "As judged")
    remark = (
        "Judges, people among them, lean to the longer answer. The rate at equal length is what a regression on the "
        "difference in length makes of it where both answers are equally long."
    )
    return Table("Length: would it win at equal length?", heads, rows, remark) if rows else None
