"""Stage `report`: one self-contained page that draws what the files of a run say, and computes nothing of its own.

The page is safe against any text in it: texts travel as JSON in a script element that is data, with `< > &` and the
line separators escaped, and are shown by `textContent`; a content security policy allows our script and style alone,
by their hashes, and no network.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from preferent import graph, run
from preferent.error import PlatformError
from preferent.recipe import Recipe
from preferent.report import accord, breakdown, chart, example, figure, forest, jury, rounds, scorer, verdict
from preferent.scale import Scale

PAGE = Path(__file__).parent / "page"
DIFFERENCE = Path(__file__).parent.parent / "page" / "difference.js"
SCRIPTS = (DIFFERENCE, PAGE / "example.js", PAGE / "reading.js")
MOST = 640_000
"""Bytes of the examples, so that the page stays below a megabyte."""
ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
STAGES = (
    *("data", "sft", "reward", "judge", "policy"),
    *("predictions/base", "predictions/tuned", "predictions/original", "comparison"),
)
PARTS = ("validation", "test")
SECTIONS = {
    "verdict": "Verdict",
    "rounds": "Rounds",
    "judges": "The judges",
    "curves": "Loss curves",
    "kl": "Reward against KL",
    "quality": "The reward model",
    "examples": "Examples",
    "made": "How it was made",
}
EXPECTED = {
    "comparison/metrics.json": "the verdict",
    "comparison/judgments.jsonl": "the examples",
    "reward/metrics.jsonl": "the reward model’s curves",
    "reward/quality.json": "the reward model’s quality",
    "reward/mistakes.jsonl": "the reward model’s mistakes",
    "judge/quality.json": "the independent judge’s quality",
    "policy/metrics.jsonl": "the policy’s curves",
    "data/counts.json": "the data counts",
    "recipe.yaml": "the recipe",
}
"""What the page shows, by the file that says it; a missing one is named on the page."""


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Write the report of the run directory `run=` to `out`, a file, or to `report.html` in it where it is a folder.

    Always made anew: it takes a second and depends on everything.
    """
    root = inputs["run"]
    if not root.is_dir():
        raise PlatformError(f"{root}: no such run directory; make one with `preferent run RECIPE`")
    page = out / "report.html" if out.is_dir() else out
    run.write_atomic(page, render(recipe, root))
    print(f"{page}: written; open it in a browser", flush=True)


def render(recipe: Recipe, root: Path) -> str:
    """The page as text."""
    environment = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined)
    environment.filters["percent"] = forest.percent
    environment.globals["ends"] = chart.ends()
    style = (PAGE / "style.css").read_text("utf-8")
    script = "\n".join(path.read_text("utf-8") for path in SCRIPTS)
    return environment.get_template("page.html").render(
        name=root.resolve().name,
        style=Markup(style),
        script=Markup(script),
        style_hash=fingerprint(style),
        script_hash=fingerprint(script),
        recipe=recipe,
        recipe_text=_text(root / "recipe.yaml"),
        missing=[(path, what) for path, what in expected(recipe).items() if not (root / path).exists()],
        direct=graph.direct(recipe),
        counts=_counts(root),
        sections={name: title for name, title in SECTIONS.items() if name != "rounds" or recipe.continues},
        **_verdict(recipe, root),
        **_figures(root),
        **scorer.section(root / "reward"),
        **_made(root),
    )


def expected(recipe: Recipe) -> dict[str, str]:
    """What the page of a recipe's run shows, by file; without a reward to optimise there is no reward model."""
    return {path: what for path, what in EXPECTED.items() if not (graph.direct(recipe) and path.startswith("reward/"))}


def fingerprint(text: str) -> str:
    """A content security policy's source expression for an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded(value: Any) -> Markup:
    """JSON that may stand in a script element whatever texts it holds."""
    return Markup(json.dumps(value, ensure_ascii=False, allow_nan=False).translate(ESCAPED))


def _verdict(recipe: Recipe, root: Path) -> dict[str, Any]:
    """What the page says first, and what stands behind it."""
    metrics, gold = _json(root / "comparison" / "metrics.json"), _json(root / "comparison" / "gold.json")
    there = metrics or {}
    found = there["judges"][there["headline"]] if there.get("headline") else None
    jurors = jury.jurors(there, recipe)
    opinions = verdict.opinions(there, gold, jurors)
    judged = [*there.get("judges", {}), *(["truth"] if gold and "win_rate" in gold else [])]
    return {
        "metrics": metrics,
        "headline": found,
        "judged_by": jurors[there["headline"]].told if found else "",
        "span": forest.span(found["interval"]) if found else "",
        "sentence": verdict.sentence(found) if found else "",
        "caution": verdict.caution(found) if found else "",
        "doubts": verdict.doubts(there, jurors) if there else [],
        "opinions": opinions,
        "who": jury.names(jurors, judged),
        "sample_size": verdict.sample_size(there),
        "side_names": verdict.titles(there),
        "measures": verdict.measures(there, jurors),
        "notes": verdict.notes(there, jurors) if there else [],
        "truth": figure.truth((gold or {}).get("curve", [])),
        "rounds": rounds.section(there, recipe.continues, jurors),
        "others": verdict.others(there, jurors),
        "ratings": verdict.ratings(there, jurors),
        "matrix": accord.matrix(there, jurors),
        "readings": accord.readings(there, jurors),
        "against_people": accord.against_people(there, jurors),
        "order": jury.order(there, jurors),
        "warnings": list(jury.unparsable(there, jurors)),
        "lengths": breakdown.lengths(there, jurors),
        "slices": breakdown.slices(there, jurors),
        **_examples(recipe, root, there, jurors),
    }


def _examples(recipe: Recipe, root: Path, metrics: dict[str, Any], jurors: Mapping[str, jury.Juror]) -> dict[str, Any]:
    """Pairs of answers for the page's script."""
    wanted = example.chosen(root, metrics, recipe.report.pairs)
    pairs = example.within(wanted, MOST, lambda row: len(embedded(row).encode()))
    titles = {name: juror.title for name, juror in jurors.items()}
    return {
        "pairs": embedded({"pairs": pairs, "titles": titles}),
        "pair_count": len(pairs),
        "pairs_wanted": len(wanted),
    }


def _figures(root: Path) -> dict[str, Any]:
    """The charts, and the figures of reward-model quality."""
    qualities = {name: _json(root / folder / "quality.json") for name, folder in figure.SCORERS.items()}
    policy = (_json(root / "policy" / "stage.json") or {}).get("facts", {})
    step = policy.get("best_step")
    best = {name: (quality or {}).get("best_step") for name, quality in qualities.items()}
    score = _json(root / "policy" / "score.json")
    curves = {name: figure.reward(root, folder, name, best[name]) for name, folder in figure.SCORERS.items()}
    reliability = [
        chart
        for name, quality in qualities.items()
        if quality
        for chart in figure.reliability(quality.get("reliability", []), name)
    ]
    return {
        "supervised": figure.supervised(root),
        "reward_curves": curves["Reward model"],
        "judge_curves": curves["Independent judge"],
        "policy_curves": figure.policy(root, step) + figure.direct(root, step),
        "against_kl": figure.against_kl(root, step),
        "reliability": reliability,
        "qualities": _parts(qualities),
        "score": score and Scale.parse(score).formula(),
        "selected": policy,
    }


def _parts(qualities: Mapping[str, Mapping[str, Any] | None]) -> list[tuple[str, str, Any]]:
    """The rows of the quality table: model, part, figures."""
    there = [(name, part, (quality or {}).get(part)) for name, quality in qualities.items() for part in PARTS]
    return [(name, part, found) for name, part, found in there if found]


def facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested values as names and texts, in their order; what is null or an empty list is left out."""
    shown = [(name, value) for name, value in run.flatten(found).items() if value is not None and value != []]
    return [(name.replace(".", " "), _fact(value)) for name, value in shown]


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_fact(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _counts(root: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """The data counts, a row for each part, those of no part under `all`."""
    counts = _json(root / "data" / "counts.json") or {}
    whole = {name: value for name, value in counts.items() if not isinstance(value, dict)}
    parts = [(name, facts(value)) for name, value in counts.items() if isinstance(value, dict)]
    return parts + ([("all", facts(whole))] if whole else [])


def _made(root: Path) -> dict[str, Any]:
    """How it was made: each stage's device and facts, and the versions, as `stage.json` has them."""
    stages = {name: found for name in STAGES if (found := _json(root / name / "stage.json"))}
    rows = [
        (name, (root / name / "DONE").exists(), facts({k: v for k, v in found["facts"].items() if k != "outputs"}))
        for name, found in stages.items()
    ]
    versions: dict[str, set[str]] = {}
    for found in stages.values():
        for package, version in found.get("versions", {}).items():
            versions.setdefault(package, set()).add(version)
    return {"stages": rows, "versions": [(package, ", ".join(sorted(found))) for package, found in versions.items()]}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file of the run; None where there is no file."""
    return run.read_json(path) if path.exists() else None
