"""Stage `report`: one self-contained page that draws the figures in the files of a run and computes none of its own.

The page is safe against any text in it. Texts are JSON in a script element of type data, with `< > &` and the line
separators escaped, and are shown by `textContent`. A content security policy allows only our script and style, by
their hashes, and no network.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from preferent import files
from preferent.config import stage_graph
from preferent.config.recipe import Recipe
from preferent.errors import PlatformError, UsageError
from preferent.evaluation import judge_quality, verdict_sentence
from preferent.evaluation.comparison_types import ComparisonMetrics, GoldFigures
from preferent.evaluation.quality_types import PartFigures, QualityFigures
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
from preferent.runs import ownership, stages
from preferent.runs.directory import RunDirectory

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
HIDDEN = ("outputs", "verdict", "headline")
"""Facts of stages that the page does not list: fingerprints, and the verdict, which it shows."""
PARTS: tuple[Literal["validation", "test"], ...] = ("validation", "test")
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
TRAINING = ("curves", "kl", "quality")
"""The sections about training, which the page of a comparison of several sides lacks."""
RELATIVE = RunDirectory(Path())
"""Paths as the page shows them: relative to the run directory."""
MARK = b'<meta name="generator" content="preferent">'
EXPECTED = {
    RELATIVE.comparison.metrics: "the verdict",
    RELATIVE.comparison.judgments: "the examples",
    RELATIVE.stage("reward").metrics: "the reward model’s curves",
    RELATIVE.stage("reward").quality: "the reward model’s quality",
    RELATIVE.stage("reward").mistakes: "the reward model’s mistakes",
    RELATIVE.stage("judge").quality: "the independent judge’s quality",
    RELATIVE.policy.metrics: "the policy’s curves",
    RELATIVE.counts: "the data counts",
    RELATIVE.recipe: "the recipe",
}
"""The parts of the page by the file that they are read from; a missing file is named on the page."""


def main(recipe: Recipe, inputs: dict[str, Path], out: Path, sick: Sequence[str] = ()) -> None:
    """Write the report of the run directory `run=` to the file `out`, or to `report.html` in the folder `out`.

    `sick` are the sentences of `preferent doctor` about what cannot be trusted; they are on the first screen. The
    report is always written anew: it takes a second and depends on everything.
    """
    root = inputs["run"]
    if not root.is_dir():
        raise PlatformError(f"{root}: no such run directory; make one with `preferent run RECIPE`")
    page = RunDirectory(out).report if out.is_dir() else out
    if page.exists() and not (ownership.holds_run(page.parent) or MARK in page.read_bytes()):
        raise UsageError(f"{page}: is there already and is no report of preferent; choose another --out")
    files.write_atomic(page, render(recipe, root, sick))
    print(f"{page}: written; open it in a browser", flush=True)


def render(recipe: Recipe, root: Path, sick: Sequence[str] = ()) -> str:
    """Return the page as text."""
    run = RunDirectory(root)
    environment = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined)
    environment.filters["percent"] = interval_tables.percent
    environment.globals["ends"] = charts.ends()
    own = verdict_section.is_of_run(_json(run.comparison.metrics) or ComparisonMetrics())
    style = (PAGE / "style.css").read_text("utf-8")
    script = "\n".join(path.read_text("utf-8") for path in SCRIPTS)
    return environment.get_template("page.html").render(
        name=root.resolve().name,
        style=Markup(style),
        script=Markup(script),
        style_hash=fingerprint(style),
        script_hash=fingerprint(script),
        recipe=recipe,
        recipe_text=_text(run.recipe),
        missing=[(p.as_posix(), what) for p, what in expected(recipe, own).items() if not (root / p).exists()],
        own=own,
        direct=stage_graph.direct(recipe),
        counts=_counts(run),
        sections={name: title for name, title in SECTIONS.items() if _has(name, recipe, own)},
        **_verdict(recipe, run, sick),
        **_figures(run),
        **reward_model_section.section(run.stage("reward")),
        **_made(run),
    )


def _has(section: str, recipe: Recipe, own: bool) -> bool:
    """Return whether a page has a section: a comparison has no training, and few runs continue others."""
    return (own or section not in TRAINING) and (section != "rounds" or bool(recipe.continues))


def expected(recipe: Recipe, own: bool = True) -> dict[Path, str]:
    """Return the parts of a recipe's page by file; without a reward to optimise there is no reward model."""
    if not own:
        return {path: what for path, what in EXPECTED.items() if path.parent == RELATIVE.comparison.folder}
    unused = [RELATIVE.stage("reward").folder] if stage_graph.direct(recipe) else []
    return {path: what for path, what in EXPECTED.items() if path.parent not in unused}


def fingerprint(text: str) -> str:
    """Return a content security policy's source expression for an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded(value: Any) -> Markup:
    """Return JSON that is safe in a script element, whatever texts it contains."""
    return Markup(json.dumps(value, ensure_ascii=False, allow_nan=False).translate(ESCAPED))


def _verdict(recipe: Recipe, run: RunDirectory, sick: Sequence[str]) -> dict[str, Any]:
    """Return the verdict and what it is based on."""
    read: ComparisonMetrics | None = _json(run.comparison.metrics)
    gold: GoldFigures | None = _json(run.comparison.gold)
    metrics = read or ComparisonMetrics()
    headline = verdict_section.headline_judge(metrics)
    judges = judge_names.reported_judges(metrics, recipe)
    a, b = verdict_section.contestants(metrics)
    names = [*metrics.get("judges", {}), *(["truth"] if gold and "win_rate" in gold else [])]
    unchanged = verdict_sentence.unchanged((_json(run.policy.description) or {}).get("facts", {}))
    doubts = verdict_section.doubts(metrics, judges) if metrics else []
    return {
        "metrics": read,
        "headline": headline,
        "judged_by": judges[metrics["headline"] or ""].description if headline else "",
        "span": interval_tables.span(headline["interval"]) if headline else "",
        "sentence": verdict_section.sentence(headline, a, b) if headline else "",
        "a": a,
        "b": b,
        "trusted": judge_quality.trusted(metrics),
        "accuracy": verdict_section.accuracy(headline) if headline else "",
        "caution": verdict_section.caution(metrics, judges) if headline else "",
        "doubts": list(dict.fromkeys([*filter(None, [unchanged]), *sick, *doubts])),
        "by_judge": verdict_section.by_judge(metrics, gold, judges),
        "descriptions": judge_names.descriptions(judges, names),
        "with_votes": verdict_section.with_votes(metrics, judges),
        "sample_size": verdict_section.sample_size(metrics),
        "side_names": verdict_section.side_titles(metrics),
        "measures": verdict_section.measures(metrics, judges),
        "notes": verdict_section.notes(metrics, judges) if metrics else [],
        "truth": figures.truth((gold or {}).get("curve", [])),
        "rounds": rounds.section(metrics, recipe.continues, judges),
        "other_pairs": verdict_section.other_pairs(metrics, judges),
        "ratings": verdict_section.ratings(metrics, judges),
        "matrix": agreement_tables.matrix(metrics, judges),
        "agreements": agreement_tables.sentences(metrics, judges),
        "against_people": agreement_tables.against_people(metrics, judges),
        "order": judge_names.order(metrics, judges),
        "warnings": list(judge_names.unparsable(metrics, judges)),
        "lengths": slices.lengths(metrics, judges),
        "slices": slices.slices(metrics, judges),
        **_examples(recipe, run, metrics, judges),
    }


def _examples(
    recipe: Recipe, run: RunDirectory, metrics: ComparisonMetrics, judges: Mapping[str, judge_names.ReportedJudge]
) -> dict[str, Any]:
    """Return pairs of answers for the page's script."""
    selected = examples.select(run, metrics, recipe.report.pairs)
    pairs = examples.fit(selected, MOST, lambda row: len(embedded(row).encode()))
    titles = {name: judge.title for name, judge in judges.items()}
    sides = verdict_section.sides(metrics)
    models = {name: sides[key] for key, name in verdict_section.NAMES.items()}
    return {
        "pairs": embedded({"pairs": pairs, "titles": titles, "models": models}),
        "pair_count": len(pairs),
        "pairs_wanted": len(selected),
    }


def _figures(run: RunDirectory) -> dict[str, Any]:
    """Return the charts, and the figures of reward-model quality."""
    scorers = {name: run.stage(folder) for name, folder in figures.SCORERS.items()}
    qualities: dict[str, QualityFigures | None] = {name: _json(stage.quality) for name, stage in scorers.items()}
    policy = (_json(run.policy.description) or {}).get("facts", {})
    step = policy.get("best_step")
    best = {name: (quality or {}).get("best_step") for name, quality in qualities.items()}
    score = _json(run.policy.score)
    curves = {name: figures.reward(stage, name, best[name]) for name, stage in scorers.items()}
    reliability = [
        chart
        for name, quality in qualities.items()
        if quality
        for chart in figures.reliability(quality.get("reliability", []), name)
    ]
    return {
        "supervised": figures.supervised(run.stage("sft")),
        "reward_curves": curves["Reward model"],
        "judge_curves": curves["Independent judge"],
        "policy_curves": figures.policy(run.policy, step) + figures.direct(run.policy, step),
        "against_kl": figures.against_kl(run.policy, step),
        "reliability": reliability,
        "qualities": _parts(qualities),
        "score": score and ScoreNormalization.parse(score).formula(),
        "selected": policy,
    }


def _parts(qualities: Mapping[str, QualityFigures | None]) -> list[tuple[str, str, PartFigures]]:
    """Return the rows of the quality table: model, part, figures."""
    there = [(name, part, quality.get(part)) for name, quality in qualities.items() if quality for part in PARTS]
    return [(name, part, part_figures) for name, part, part_figures in there if part_figures]


def facts(nested: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return nested values as names and texts, in their order; nulls and empty lists are left out."""
    shown = [(name, fact) for name, fact in stages.flatten(nested).items() if fact is not None and fact != []]
    return [(name.replace(".", " "), _fact(fact)) for name, fact in shown]


def _fact(fact: Any) -> str:
    if isinstance(fact, list):
        return ", ".join(map(_fact, fact))
    return f"{fact:.4g}" if isinstance(fact, float) else str(fact)


def _counts(run: RunDirectory) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the data counts, a row for each part; those that belong to no part are under `all`, remote files last."""
    counts = _json(run.counts) or {}
    copies = counts.pop("remote", [])
    remote = [(copy["url"], f"{copy['size']:,} bytes, SHA-256 {copy['sha256'][:16]}…") for copy in copies]
    whole = {name: count for name, count in counts.items() if not isinstance(count, dict)}
    parts = [(name, facts(count)) for name, count in counts.items() if isinstance(count, dict)]
    return parts + ([("all", facts(whole))] if whole else []) + ([("remote", remote)] if remote else [])


def _made(run: RunDirectory) -> dict[str, Any]:
    """Return how the run was made: each stage's device and facts, and the versions, as in `stage.json`."""
    described = {name: stage for name in STAGES if (stage := _json(run.stage(name).description))}
    rows = [
        (name, run.stage(name).done.exists(), facts({k: v for k, v in stage["facts"].items() if k not in HIDDEN}))
        for name, stage in described.items()
    ]
    versions: dict[str, set[str]] = {}
    for stage in described.values():
        for package, version in stage.get("versions", {}).items():
            versions.setdefault(package, set()).add(version)
    return {"stages": rows, "versions": [(package, ", ".join(sorted(used))) for package, used in versions.items()]}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _json(path: Path) -> Any:
    """Return the object in a JSON file of the run; None if there is no file."""
    return files.read_json(path) if path.exists() else None
