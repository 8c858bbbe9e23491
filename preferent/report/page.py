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

from preferent import files
from preferent.config import stage_graph
from preferent.config.recipe import Recipe
from preferent.errors import PlatformError
from preferent.report import (
    agreement_tables,
    charts,
    examples,
    figures,
    interval_tables,
    judge_names,
    reward_model_section,
    rounds,
    slices,
    verdict_section,
)
from preferent.rewards.normalization import ScoreNormalization
from preferent.runs import stages

PAGE = Path(__file__).parent / "templates"
DIFFERENCE = Path(__file__).parent.parent / "evaluation" / "static" / "difference.js"
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
    files.write_atomic(page, render(recipe, root))
    print(f"{page}: written; open it in a browser", flush=True)


def render(recipe: Recipe, root: Path) -> str:
    """The page as text."""
    environment = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined)
    environment.filters["percent"] = interval_tables.percent
    environment.globals["ends"] = charts.ends()
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
        direct=stage_graph.direct(recipe),
        counts=_counts(root),
        sections={name: title for name, title in SECTIONS.items() if name != "rounds" or recipe.continues},
        **_verdict(recipe, root),
        **_figures(root),
        **reward_model_section.section(root / "reward"),
        **_made(root),
    )


def expected(recipe: Recipe) -> dict[str, str]:
    """What the page of a recipe's run shows, by file; without a reward to optimise there is no reward model."""
    return {
        path: what for path, what in EXPECTED.items() if not (stage_graph.direct(recipe) and path.startswith("reward/"))
    }


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
    jurors = judge_names.jurors(there, recipe)
    opinions = verdict_section.opinions(there, gold, jurors)
    judged = [*there.get("judges", {}), *(["truth"] if gold and "win_rate" in gold else [])]
    return {
        "metrics": metrics,
        "headline": found,
        "judged_by": jurors[there["headline"]].told if found else "",
        "span": interval_tables.span(found["interval"]) if found else "",
        "sentence": verdict_section.sentence(found) if found else "",
        "caution": verdict_section.caution(found) if found else "",
        "doubts": verdict_section.doubts(there, jurors) if there else [],
        "opinions": opinions,
        "who": judge_names.names(jurors, judged),
        "sample_size": verdict_section.sample_size(there),
        "side_names": verdict_section.titles(there),
        "measures": verdict_section.measures(there, jurors),
        "notes": verdict_section.notes(there, jurors) if there else [],
        "truth": figures.truth((gold or {}).get("curve", [])),
        "rounds": rounds.section(there, recipe.continues, jurors),
        "others": verdict_section.others(there, jurors),
        "ratings": verdict_section.ratings(there, jurors),
        "matrix": agreement_tables.matrix(there, jurors),
        "readings": agreement_tables.readings(there, jurors),
        "against_people": agreement_tables.against_people(there, jurors),
        "order": judge_names.order(there, jurors),
        "warnings": list(judge_names.unparsable(there, jurors)),
        "lengths": slices.lengths(there, jurors),
        "slices": slices.slices(there, jurors),
        **_examples(recipe, root, there, jurors),
    }


def _examples(
    recipe: Recipe, root: Path, metrics: dict[str, Any], jurors: Mapping[str, judge_names.ReportedJudge]
) -> dict[str, Any]:
    """Pairs of answers for the page's script."""
    wanted = examples.chosen(root, metrics, recipe.report.pairs)
    pairs = examples.within(wanted, MOST, lambda row: len(embedded(row).encode()))
    titles = {name: juror.title for name, juror in jurors.items()}
    return {
        "pairs": embedded({"pairs": pairs, "titles": titles}),
        "pair_count": len(pairs),
        "pairs_wanted": len(wanted),
    }


def _figures(root: Path) -> dict[str, Any]:
    """The charts, and the figures of reward-model quality."""
    qualities = {name: _json(root / folder / "quality.json") for name, folder in figures.SCORERS.items()}
    policy = (_json(root / "policy" / "stage.json") or {}).get("facts", {})
    step = policy.get("best_step")
    best = {name: (quality or {}).get("best_step") for name, quality in qualities.items()}
    score = _json(root / "policy" / "score.json")
    curves = {name: figures.reward(root, folder, name, best[name]) for name, folder in figures.SCORERS.items()}
    reliability = [
        chart
        for name, quality in qualities.items()
        if quality
        for chart in figures.reliability(quality.get("reliability", []), name)
    ]
    return {
        "supervised": figures.supervised(root),
        "reward_curves": curves["Reward model"],
        "judge_curves": curves["Independent judge"],
        "policy_curves": figures.policy(root, step) + figures.direct(root, step),
        "against_kl": figures.against_kl(root, step),
        "reliability": reliability,
        "qualities": _parts(qualities),
        "score": score and ScoreNormalization.parse(score).formula(),
        "selected": policy,
    }


def _parts(qualities: Mapping[str, Mapping[str, Any] | None]) -> list[tuple[str, str, Any]]:
    """The rows of the quality table: model, part, figures."""
    there = [(name, part, (quality or {}).get(part)) for name, quality in qualities.items() for part in PARTS]
    return [(name, part, found) for name, part, found in there if found]


def facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested values as names and texts, in their order; what is null or an empty list is left out."""
    shown = [(name, value) for name, value in stages.flatten(found).items() if value is not None and value != []]
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
    return files.read_json(path) if path.exists() else None
