"""What differs between two folders of runs: tensors by name and bytes, rollouts by column, JSON by figure.

Two rows are equal where every figure in them is, to the last bit. Four differences are exempt, and shown with both
values:

- *best of n*: which of its answers a best-of-n prediction is, with its scores, and what follows in a comparison;
- *cut answer*: scores and judgments of an answer that did not end, and the figures of a comparison made of them;
- *moments*: tensors of a best checkpoint that are not weights, where HEAD has none;
- *scipy*: Wilson's interval, the sign test and Spearman's correlation, to 1e-12.

With a bound above 0, floats are equal too where they are no further apart than the bound times the larger of 1 and the
largest magnitude in BASE's tensor (or of the figure); how far they are apart is shown per stage folder.

A comparison's figures are exempt only where a judgment of it is. Timings, TensorBoard's files, reports, recipes and
`stage.json` are not compared. Files and figures of a comparison that only HEAD has, and columns of rollouts that only
one side has, are shown, and are no difference.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

JSON = ("score.json", "quality.json", "metrics.json")
ROWS = ("samples.jsonl", "mistakes.jsonl", "text.jsonl", "answers.jsonl", "judgments.jsonl")
SCIPY = re.compile(r"(^|[./])(p_exact|length_correlation|correlation|first_slot_interval)(\.\d+)?$")
CHOSEN = re.compile(r"(prediction|tokens|ended|score|scores\.\d+)$")
"""What a best-of-n prediction says of the answer that was chosen."""
JUDGED = re.compile(r"(choice|confidence|score_a|score_b)$")
"""What a judgment says of two answers."""
OF_JUDGMENTS = re.compile(
    r"(autosxs_model_[ab]_win_rate|sample_size|judges|rates|rating|agreement|against_people)(\.|$)"
    r"|changed\.(better|worse|even|p|p_exact)$"
)
"""What a comparison makes of its judgments."""
OF_ANSWERS = re.compile(r"(identical|changed|length|ended|best_of|duplicates|rouge)(\.|$)")
"""What a comparison says of the answers themselves, save their KL, which is that of the policy."""
MOMENTS = ("exp_avg.", "exp_avg_sq.", "step.")
SHOWN = 12
"""Differences printed of a stage folder; exempt ones are all printed."""
ABSENT = "absent"


@dataclass
class Count:
    """What was compared in a stage folder, how much of it was equal or exempt, and the lines that say what was not."""

    tensors: int = 0
    columns: int = 0
    lines: int = 0
    rows: int = 0
    figures: int = 0
    equal: int = 0
    exempt: int = 0
    bound: float = 0.0
    apart: float = 0.0
    notes: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def add(self, place: str, leaves: Sequence[tuple[str, Any, Any, str | None]]) -> None:
        """Count one thing with its unequal leaves: (name, BASE's, HEAD's, why it is exempt)."""
        leaves = [leaf for leaf in leaves if not self.near(leaf[1], leaf[2])]
        for name, base, head, why in leaves:
            line = f"{place} {name}: BASE {short(base)}  HEAD {short(head)}"
            self.notes.append(f"exempt, {why}: {line}") if why else self.differences.append(line)
        if not leaves:
            self.equal += 1
        elif all(why for *_, why in leaves):
            self.exempt += 1

    def near(self, base: Any, head: Any) -> bool:
        """Whether two floats, or tensors of floats, are within the bound; keep the largest relative distance."""
        distance = apart(base, head)
        if not self.bound or distance is None or not distance <= self.bound:
            return False
        self.apart = max(self.apart, distance)
        return True


@dataclass(frozen=True)
class Tensor:
    """A tensor as its file has it."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)} {hashlib.sha256(self.content).hexdigest()[:8]}"

    def floats(self) -> np.ndarray | None:
        """The entries, if they are floats that numpy knows."""
        kind = {"F32": np.float32, "F64": np.float64}.get(self.dtype)
        return None if kind is None else np.frombuffer(self.content, kind)


def apart(base: Any, head: Any) -> float | None:
    """The largest distance of two floats or tensors of floats over the larger of 1 and BASE's largest magnitude; None
    where that has no meaning."""
    if isinstance(base, Tensor) and isinstance(head, Tensor) and (base.dtype, base.shape) == (head.dtype, head.shape):
        sides = base.floats(), head.floats()
    elif isinstance(base, float) and isinstance(head, float):
        sides = np.array([base]), np.array([head])
    else:
        return None
    if sides[0] is None or sides[1] is None or not len(sides[0]):
        return None
    scale = max(1.0, float(np.abs(sides[0][np.isfinite(sides[0])]).max(initial=0.0)))
    equal = sides[0] == sides[1]
    return float(np.abs(np.where(equal, 0.0, sides[0] - sides[1])).max()) / scale


def short(value: object) -> str:
    """A value as a line shows it."""
    text = str(value) if isinstance(value, Tensor) or value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 70 else f"{text[:67]}…"


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, by name."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return {
        name: Tensor(entry["dtype"], tuple(entry["shape"]), content[start:][slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The figures in a JSON value, by dotted name; an empty list or object is one."""
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def unequal(base: Any, head: Any) -> Iterator[tuple[str, Any, Any]]:
    """The figures of two JSON values that differ; a seal over the others is none."""
    values = [dict(leaves(value)) for value in (base, head)]
    for name in dict.fromkeys([*values[0], *values[1]]):
        one, other = (side.get(name, ABSENT) for side in values)
        if name != "sha256" and json.dumps(one) != json.dumps(other):  # a float's text is exact, and -0.0 is not 0.0
            yield name, one, other


def by_scipy(name: str, base: Any, head: Any) -> str | None:
    """Why two figures may differ, of those that scipy computes."""
    numbers = all(isinstance(value, float | int) for value in (base, head))
    return "scipy" if SCIPY.search(name) and numbers and abs(base - head) <= 1e-12 else None


def compared(base: Path, head: Path, bound: float = 0.0) -> bool:
    """Compare two folders, print the table and what it counts as exempt or different; whether anything differs."""
    counts: dict[str, Count] = {}
    for path in sorted({path for side in (base, head) for path in relevant(side)}):
        place = stage_of(path, base, head)
        count = counts.setdefault(place, Count(bound=bound))
        if not (head / path).exists():
            count.differences.append(f"{path}: BASE there  HEAD {ABSENT}")
        elif not (base / path).exists():
            count.notes.append(f"only in HEAD: {path}")
        else:
            compare(path, base, head, count)
    print("| stage folder | tensors | columns | metric lines | rows | figures | equal | exempt | apart | differences |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for place, count in counts.items():
        sizes = (count.tensors, count.columns, count.lines, count.rows, count.figures, count.equal, count.exempt)
        print(f"| {place} | {' | '.join(map(str, sizes))} | {count.apart:.1g} | {len(count.differences)} |")
    for count in counts.values():
        left_out = len(count.differences) - SHOWN
        more = [f"… and {left_out} more there"] if left_out > 0 else []
        lines = [f"DIFFERENT: {line}" for line in (*count.differences[:SHOWN], *more)]
        print("".join(f"{line}\n" for line in (*count.notes, *lines)), end="")
    differ = sum(len(count.differences) for count in counts.values())
    print(f"{differ} differences" if differ else "no difference")
    return bool(differ) or not counts


def relevant(folder: Path) -> Iterator[Path]:
    """The files in a folder that are compared, relative to it."""
    for path in folder.rglob("*"):
        place = path.relative_to(folder)
        is_data = len(place.parts) > 2 and "data" in place.parts[:-1] and path.suffix == ".jsonl"
        is_named = path.name in (*JSON, *ROWS, "metrics.jsonl")
        if len(place.parts) > 1 and (is_named or is_data or path.suffix == ".safetensors"):
            yield place


def stage_of(path: Path, base: Path, head: Path) -> str:
    """The stage folder that a file is in."""
    stages = [
        folder for folder in path.parents if any((side / folder / "stage.json").exists() for side in (base, head))
    ]
    return str(stages[0] if stages else path.parent)


def compare(path: Path, base: Path, head: Path, count: Count) -> None:
    """Compare one file that both sides have."""
    if path.suffix == ".safetensors":
        compare_tensors(path, base, head, count)
    elif path.name == "metrics.json":
        compare_figures(path, base, head, count)
    elif path.suffix == ".json":
        changed = list(unequal(*(json.loads((side / path).read_text()) for side in (base, head))))
        count.figures += 1
        count.add(str(path), [(*leaf, by_scipy(*leaf)) for leaf in changed])
    else:
        compare_rows(path, base, head, count)


def compare_tensors(path: Path, base: Path, head: Path, count: Count) -> None:
    """Compare the tensors of a file by name, type, shape and bytes; moments that only BASE has are one line."""
    sides = [tensors(side / path) for side in (base, head)]
    rollouts = "rollouts" in path.parts
    moments = {
        name: tensor
        for name, tensor in sides[0].items()
        if "best" in path.parts and name.startswith(MOMENTS) and name not in sides[1]
    }
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        one, other = (side.get(name, ABSENT) for side in sides)
        if rollouts and ABSENT in (one, other):
            count.notes.append(f"column of one side: {path} {name}: BASE {short(one)}  HEAD {short(other)}")
            continue
        count.columns, count.tensors = count.columns + rollouts, count.tensors + (not rollouts)
        if name not in moments:
            distance = apart(one, other)
            words = "" if distance is None else f" (up to {distance:.2g} apart)"
            count.add(str(path), [] if one == other else [(name + words, one, other, None)])
    if moments:
        size = sum(len(tensor.content) for tensor in moments.values())
        count.exempt += len(moments)
        count.notes.append(f"exempt, moments: {path}: BASE {len(moments)} tensors of {size:,} bytes  HEAD {ABSENT}")


def rows_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def compare_rows(path: Path, base: Path, head: Path, count: Count) -> None:
    """Compare a JSONL file row by row."""
    sides = [rows_of(side / path) for side in (base, head)]
    if len(sides[0]) != len(sides[1]):
        count.differences.append(f"{path}: BASE has {len(sides[0])} rows  HEAD {len(sides[1])}")
    for number, (one, other) in enumerate(zip(*sides, strict=False), start=1):
        is_line = path.name == "metrics.jsonl"
        count.lines, count.rows = count.lines + is_line, count.rows + (not is_line)
        changed = [
            (name, *both, by_scipy(name, *both) or exempt(path, base, head, name, one))
            for name, *both in unequal(one, other)
        ]
        count.add(f"{path}:{number}", changed)


def exempt(path: Path, base: Path, head: Path, name: str, one: Mapping[str, Any]) -> str | None:
    """Why a figure of two rows may differ: best-of-n predictions, and judgments of those and of cut answers."""
    if path.name == "text.jsonl" and one.get("best_of", 1) > 1 and CHOSEN.match(name):
        return "best of n"
    folders = base / path.parent, head / path.parent
    if path.name == "answers.jsonl" and best_of(folders) and re.match(r"answers\.a\.(text|tokens|ended)$", name):
        return "best of n"
    if path.name != "judgments.jsonl":
        return None
    keys = {side["name"]: side["key"] for side in json.loads((folders[0] / "metrics.json").read_text())["sides"]}
    pair = [keys[one[model]] for model in ("model_a", "model_b")]
    base_answers, head_answers = (answers_to(folder, one["id"], pair) for folder in folders)
    place = {"a": 0, "b": 1}.get(name.rpartition("_")[2])  # score_a is of a alone, a choice of both
    about = [(base_answers[i], head_answers[i]) for i in (range(2) if place is None else (place,))]
    is_chosen = best_of(folders) and any(answer != other for answer, other in about)
    if is_chosen and re.match(r"response_[ab]$", name):
        return "best of n"
    if not JUDGED.match(name) or one.get("judge") == "people":
        return None
    is_cut = any(answer["ended"] is False for both in about for answer in both)
    return "cut answer" if is_cut else "best of n" if is_chosen else None


def best_of(folders: Sequence[Path]) -> bool:
    """Whether a comparison is of best-of-n answers, on both sides."""
    return all("best_of" in json.loads((folder / "metrics.json").read_text()) for folder in folders)


def answers_to(folder: Path, name: str, sides: Sequence[str]) -> list[dict[str, Any]]:
    """What some sides of a comparison answered to one prompt: text and whether it ended."""
    row = next(row for row in rows_of(folder / "answers.jsonl") if row["id"] == name)
    return [{key: row["answers"][side][key] for key in ("text", "ended")} for side in sides]


def compare_figures(path: Path, base: Path, head: Path, count: Count) -> None:
    """Compare what two comparisons found; figures made of judgments may differ where one of those may and does."""
    sides = [json.loads((side / path).read_text()) for side in (base, head)]
    judgments = [rows_of(side / path.parent / "judgments.jsonl") for side in (base, head)]
    rejudged = len(judgments[0]) == len(judgments[1]) and judgments[0] != judgments[1]
    chosen = best_of((base / path.parent, head / path.parent))
    changed = []
    for name, one, other in unequal(*sides):
        if one is ABSENT:
            count.notes.append(f"only in HEAD: {path} {name}: {short(other)}")
            continue
        why = by_scipy(name, one, other)
        if rejudged and OF_JUDGMENTS.match(name):
            why = why or ("best of n" if chosen else "cut answer")
        if chosen and OF_ANSWERS.match(name):
            why = why or "best of n"
        changed.append((name, one, other, why))
    count.figures += len(list(leaves(sides[0])))
    count.equal += len(list(leaves(sides[0]))) - len(changed)
    for leaf in changed:
        count.add(str(path), [leaf])
