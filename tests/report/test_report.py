"""The report: it says what the files say, whatever text is in them, and reaches for nothing outside."""

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preferent import files
from preferent.config.recipe import Recipe, dump, parse
from preferent.data.judgments import write
from preferent.data.predictions import Answer
from preferent.data.types import Preference, Prompt
from preferent.errors import DataError, PlatformError
from preferent.evaluation import comparison_summary, reward_findings, reward_quality, verdict_sentence
from preferent.evaluation.judge_results import by_scores
from preferent.report import charts, examples, figures, interval_tables, page, reward_model_section, verdict_section
from preferent.report.page import EXPECTED, SECTIONS, render
from preferent.runs import metrics
from preferent.runs.directory import RunDirectory

TERM = {"name": "reward", "weight": 1.0, "members": {"reward": {"bias": -0.5, "gain": 1.0}}}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!-- & \"' \u2028\u2029 {{ 7 * 7 }} 日本 😀"
SCALE = {
    "terms": [{"name": "reward", "weight": 1.0, "members": {"reward": {"bias": -0.5, "gain": 1.0}}}],
    "prompts": 256,
}


def make_recipe(**values: Any) -> Recipe:
    return parse({"large_model_reference": "models/tiny"} | values)[0]


def make_metrics(path: Path, steps: int, names: list[str], every: int = 10) -> None:
    """Written at once: `append` opens the file for every line."""
    rows = []
    for step in range(1, steps + 1):
        held_out = step % every == 0
        rows.append({"step": step} | {n: math.sin(step + len(n)) for n in names if held_out or "validation" not in n})
    files.write_jsonl(path, rows)


def make_stage(folder: Path, **facts: Any) -> None:
    files.write_json(folder / "stage.json", {"versions": {"python": "3.11.7"}, "facts": facts})
    files.write_atomic(folder / "DONE", "")


def make_comparison(
    root: Path, texts: list[str], lead: float = 1.0, headline: str = "judge", right: int | None = None
) -> None:
    """The judge was right on `right` of 384 held-out pairs, None where nobody measured it."""
    n = len(texts)
    a = [Answer(str(i), f"Prompt {i}: {t}", "", t, tokens=3, ended=True, kl=2.0) for i, t in enumerate(texts)]
    b = [Answer(str(i), a[i].prompt, "", f"base {i}", tokens=4, ended=True) for i in range(n)]
    scores = {"a": np.linspace(lead - 1, lead + 1, n), "b": np.zeros(n)}
    answers, names = {"a": a, "b": b}, {"a": "tuned", "b": "base"}
    facts = {} if right is None else {"accuracy": accuracy(right)}
    opinions = [by_scores(name, scores, answers, None, names, facts) for name in ("judge", "reward")]
    judgments, metrics = comparison_summary.verdict(answers, opinions, headline, names)
    write(judgments, root / "comparison" / "judgments.jsonl")
    files.write_json(root / "comparison" / "metrics.json", metrics)


def accuracy(right: int) -> dict[str, Any]:
    outcomes, alone = np.arange(384) < right, [str(pair) for pair in range(384)]
    figures = reward_quality.measured(outcomes.astype(float), alone)
    return figures | {"by": "held_out", "rules": {"longer": {"share": 0.52, "lead_interval": [0.05, 0.3]}}}


def make_run(root: Path, texts: list[str], steps: int = 40) -> Path:
    quality = {
        "count": 9,
        "loss": 0.6,
        "accuracy": 0.75,
        "ece": 0.05,
        "length_correlation": -0.25,
        "longer_accuracy": 0.5,
    }
    bins = [{"confidence": 0.55, "accuracy": 0.5, "count": 4}, {"confidence": 0.9, "accuracy": 1.0, "count": 5}]
    for folder in ("reward", "judge"):
        names = ["rank_loss", "accuracy", "validation/loss", "validation/accuracy"]
        make_metrics(root / folder / "metrics.jsonl", steps, names)
        files.write_json(root / folder / "quality.json", {"test": quality, "reliability": bins, "best_step": 20})
        make_stage(root / folder, best_step=20)
    files.write_jsonl(root / "reward" / "mistakes.jsonl", [])
    names = ["reward", "kl_loss", "rl_loss", "objective/entropy", "tokens/length", "tokens/ended"]
    names += [f"validation/{name}" for name in ("score", "kl", "objective", "length", "ended")]
    make_metrics(root / "policy" / "metrics.jsonl", steps, names)
    make_stage(root / "policy", best_step=30, best_objective=0.123456, stopped=None)
    files.write_json(root / "policy" / "score.json", {"terms": [TERM], "prompts": 256})
    files.write_json(root / "data" / "counts.json", {"preference": {"read": 12, "kept": 11}, "dropped": 1})
    make_comparison(root, texts)
    return root


class Page(HTMLParser):
    """The elements of a page with their attributes, and the texts of scripts, styles and everything else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.raw: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.raw.append((self.inside[-1], data))
        else:
            self.text += data


def test_the_verdict_comes_first_and_the_parts_in_order(tmp_path: Path) -> None:
    page = render(make_recipe(), make_run(tmp_path / "my-run", [f"text {i}" for i in range(30)]))
    names = [name for key, name in SECTIONS.items() if key != "rounds"]
    places = [page.index(f"<h2>{name}</h2>") for name in names]
    assert places == sorted(places)
    assert "<h1>my-run</h1>" in page
    assert re.search(r"<strong>98\xa0%</strong><span>win rate against the base model", page)
    assert (
        "Of 30 test prompts, the tuned model’s answer was preferred on 29, the base model’s on 0, with one tie." in page
    )
    assert "<strong>2.00</strong>" in page
    assert "independent judge, a reward model that learned from other preferences" in page


def test_every_chart_of_the_issue_is_there(tmp_path: Path) -> None:
    page = render(make_recipe(), make_run(tmp_path, ["a", "b", "c"]))
    titles = re.findall("<h3>(.*?)</h3>", page)
    assert titles[:5] == [
        "Reward model: rank loss",
        "Reward model: accuracy",
        "PPO: reward",
        "PPO: kl_loss",
        "PPO: rl_loss",
    ]
    assert "Reward against KL" in titles
    assert "Reward model: confidence and accuracy" in titles
    assert "The selected checkpoint, step 30" in page
    rings = {"reward model": 2, "its judge": 2, "PPO with validation": 4, "reward against KL": 1}
    assert page.count('<circle class="ring c2"') == sum(rings.values())


def make_details(root: Path, text: str) -> None:
    """A reward model's figures and one mistake, as the stage writes them."""
    answers = [Preference(Prompt(text), f"{text} a", f"{text} b", i % 2, strength=float(i % 3)) for i in range(40)]
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 9, (2, 40))
    pairs = reward_quality.Scored(answers, *(tokens + generator.normal(size=(2, 40))), *tokens)
    samples = {"samples": reward_quality.beside(*generator.normal(size=(3, 8)))}
    found = {"test": reward_quality.figures(pairs), "reported": "test", "best_step": 20}
    files.write_json(root / "quality.json", found | reward_quality.details(pairs, answers) | samples)
    files.write_jsonl(root / "mistakes.jsonl", reward_quality.mistakes(pairs, root))


def test_the_reward_model_is_shown_before_anything_is_tuned(tmp_path: Path) -> None:
    make_details(tmp_path / "reward", "x")
    page = render(make_recipe(), tmp_path)
    found = files.read_json(tmp_path / "reward" / "quality.json")
    for remark in reward_findings.remarks(found):
        assert remark.says in Page(page).text
    captions = re.findall("<caption>(.*?)</caption>", page)
    assert captions == [
        "On held-out preferences",
        "Beside rules that need no model",
        "By the model’s confidence",
        "By how clear the choice was",
        "By length and position",
        "Beside sampled answers",
    ]
    assert "Reward model: confidence and accuracy" in page
    assert f"the {len(files.read_jsonl(tmp_path / 'reward' / 'mistakes.jsonl'))} pairs on which" in page
    longer = found["rules"]["longer"]
    cells = re.search(r'the longer wins</th><td>.*?</td><td class="num">(.*?)</td>.*?<td class="num">40</td>', page)
    assert cells is not None and cells[1] == interval_tables.percent(longer["share"], 1)
    assert "There is no verdict: nothing was compared yet." in page


def test_the_texts_of_mistakes_stay_texts_and_short(tmp_path: Path) -> None:
    make_details(tmp_path / "reward", HOSTILE + "x" * 3000)
    page = render(make_recipe(), tmp_path)
    shown = Page(page)
    assert not [tag for tag, _ in shown.tags if tag == "img"] and HOSTILE in shown.text
    assert "x" * 1800 in shown.text and "x" * 2000 not in shown.text


def test_conversations_among_the_mistakes(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "hello"}], "candidate_0": "a", "candidate_1": "b", "choice": 1}
    found = reward_model_section.mistake(
        row | {"score_0": 2.0, "score_1": -1.0, "confidence": 0.95, "source": "test.jsonl:3"}
    )
    assert found["prompt"] == "user: hello" and found["source"] == "test.jsonl:3"
    assert [(one["score"], one["chosen"]) for one in found["answers"]] == [("2", False), ("−1", True)]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run <b>&", [HOSTILE, "plain", "other"])
    files.write_json(root / "data" / "counts.json", {HOSTILE: {HOSTILE: 1}})
    make_stage(root / "policy", stopped=HOSTILE, best_step=30)
    (root / "recipe.yaml").write_text(dump(make_recipe(instruction=HOSTILE)))
    page = render(make_recipe(instruction=HOSTILE), root)
    found = Page(page)
    assert [attrs.get("type") for tag, attrs in found.tags if tag == "script"] == ["application/json", "module"]
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert found.text.count(HOSTILE) >= 4
    data = "".join(text for kind, text in found.raw if kind == "script" and text.startswith("{"))
    assert not set("<>&\u2028\u2029") & set(data)
    texts = [answer["text"] for pair in json.loads(data)["pairs"] for answer in pair["answers"]]
    assert HOSTILE in texts


def test_the_policy_allows_our_script_and_style_alone(tmp_path: Path) -> None:
    found = Page(page.render(make_recipe(), make_run(tmp_path, ["a", "b", "c"])))
    policy = next(attrs["content"] for tag, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    scripts = [text for kind, text in found.raw if kind == "script" and not text.startswith("{")]
    styles = [text for kind, text in found.raw if kind == "style"]
    for kind, texts in (("script-src", scripts), ("style-src", styles)):
        assert len(texts) == 1
        digest = base64.b64encode(hashlib.sha256(texts[0].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert not [attrs for _, attrs in found.tags if "style" in attrs]


def test_nothing_is_fetched(tmp_path: Path) -> None:
    found = Page(page.render(make_recipe(), make_run(tmp_path, ["a", "b", "c"])))
    links = [value for _, attrs in found.tags for name, value in attrs.items() if name in ("src", "href")]
    assert [link for link in links if link and not link.startswith("#")] == ["data:,"]
    ids = {attrs.get("id") for _, attrs in found.tags}
    assert [link for link in links if link and link.startswith("#") and link[1:] not in ids] == []
    assert not [text for _, text in found.raw if "url(" in text or "@import" in text or "fetch(" in text]
    assert not [path for path in page.SCRIPTS if "innerHTML" in path.read_text()]


def test_long_runs_stay_below_a_megabyte(tmp_path: Path) -> None:
    page = render(make_recipe(), make_run(tmp_path, ["a", "b", "c"], steps=10_000))
    assert 100_000 < len(page.encode()) < 1_000_000


def test_an_empty_run_names_what_is_not_there(tmp_path: Path) -> None:
    page = render(make_recipe(), tmp_path)
    assert "There is no verdict: nothing was compared yet." in page
    for path in EXPECTED:
        assert path.as_posix() in page
    assert "<figure>" not in page
    assert "NaN" not in page
    assert "None" not in page


@pytest.mark.parametrize("path", list(page.EXPECTED), ids=str)
def test_any_missing_part_is_named(tmp_path: Path, path: Path) -> None:
    root = make_run(tmp_path, ["a", "b", "c"])
    (root / "recipe.yaml").write_text(dump(make_recipe()))
    assert "Missing," not in page.render(make_recipe(), root)
    (root / path).unlink()
    assert f"({path.as_posix()})" in page.render(make_recipe(), root)


def test_a_verdict_by_the_optimised_reward_is_marked(tmp_path: Path) -> None:
    make_comparison(tmp_path, ["a", "b", "c"], headline="reward")
    page = render(make_recipe(), tmp_path)
    assert "Not independent: the policy was tuned to raise this reward" in page
    assert 'class="figure doubtful"' in page
    make_comparison(tmp_path, ["a", "b", "c"])
    assert "Not independent:" not in render(make_recipe(), tmp_path)


DOUBTFUL = 'class="figure doubtful"'


def test_a_headline_is_in_colour_only_if_the_judge_can_tell(tmp_path: Path) -> None:
    texts = [f"t{i}" for i in range(30)]
    make_comparison(tmp_path, texts, right=265)
    shown = render(make_recipe(), tmp_path)
    assert DOUBTFUL not in shown and 'class="caution"' not in shown
    assert shown.count("69.0\xa0% (64.2–73.4\xa0%) of 384 held-out pairs") == 3, "by the verdict and in both rows"
    make_comparison(tmp_path, texts, right=200)
    shown = render(make_recipe(), tmp_path)
    assert DOUBTFUL in shown
    assert (
        "No judge here can tell: right on 52.1\xa0% (47.1–57.0\xa0%) of 384 held-out pairs, and that may "
        "be chance." in shown
    )
    assert "according to this judge" not in shown
    make_comparison(tmp_path, texts)
    shown = render(make_recipe(), tmp_path)
    assert DOUBTFUL in shown and "Accuracy not measured" in shown
    make_comparison(tmp_path, texts, lead=0.0, right=265)
    assert DOUBTFUL in render(make_recipe(), tmp_path), "the interval contains one half"


def test_what_is_sick_and_an_unchanged_policy_are_on_the_first_screen(tmp_path: Path) -> None:
    root = make_run(tmp_path, ["a", "b", "c"])
    assert "The policy is the base" not in render(make_recipe(), root)
    make_stage(root / "policy", best_step=0, steps=30)
    shown = render(make_recipe(), root, ["The judge model guesses.", verdict_sentence.UNCHANGED])
    doubts = shown[shown.index("Before you believe it") : shown.index('id="judges"')]
    assert doubts.count(verdict_sentence.UNCHANGED) == 1 and doubts.count("The judge model guesses.") == 1
    assert doubts.index(verdict_sentence.UNCHANGED) < doubts.index("The judge model guesses.")


def test_a_comparison_without_judge_has_no_win_rate(tmp_path: Path) -> None:
    a = [Answer("1", "p", "", "x", tokens=1)]
    _, metrics = comparison_summary.verdict({"a": a, "b": a}, [], None, {"a": "tuned", "b": "base"})
    files.write_json(tmp_path / "comparison" / "metrics.json", metrics)
    page = render(make_recipe(), tmp_path)
    assert "This comparison had no judge" in page
    assert "1 of 1" in page


def test_the_known_truth_stands_beside_the_judges(tmp_path: Path) -> None:
    root = make_run(tmp_path, ["a", "b", "c"])
    curve = [{"step": s, "gold": 1.0 - s, "proxy": s, "kl": s} for s in (0, 1, 2)]
    files.write_json(
        root / "comparison" / "gold.json", {"win_rate": 0.721, "interval": [0.6, 0.8], "n": 3, "curve": curve}
    )
    page = render(make_recipe(), root)
    assert "The true preference: known, as these preferences are generated" in page
    assert "72.1\xa0%" in page
    assert "60.0–80.0\xa0%" in page
    assert "Score and true preference" in page


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.51, 0.9), "is better"),
        ((0.5, 0.9), "does not show"),
        ((0.1, 0.6), "does not show"),
        ((0.1, 0.49), "is worse"),
    ],
)
def test_the_sentence_follows_the_interval(interval: tuple[float, float], said: str) -> None:
    found: dict[str, Any] = {"kind": "reward_model", "win": 3, "tie": 0, "loss": 2, "n": 5, "prompts": 5}
    found |= {"interval": interval}
    assert said in verdict_section.sentence(found)
    assert "tie" not in verdict_section.sentence(found)
    assert "5 answers to 2 test prompts" in verdict_section.sentence(found | {"prompts": 2})


def test_percentages_do_not_round_to_certainty() -> None:
    assert [interval_tables.percent(x) for x in (0.777, 0.996, 1.0, 0.004, 0.0)] == [
        "78\xa0%",
        "99.6\xa0%",
        "100\xa0%",
        "0.4\xa0%",
        "0\xa0%",
    ]


def test_wins_losses_disputed_and_random_are_disjoint() -> None:
    leads = [0.5, -2.0, 3.0, 0.0, None, 1.0, -1.0, 0.1, 0.2]
    gaps = [0.0, 2.0, 0.0, 0.0, 1.0, 0.0, 0.0, 2.0, 0.0]
    nobody = ("judges disagree", [0.0] * 9)
    groups = dict(examples.pick_groups(leads, nobody, 6))
    assert (groups["biggest wins"], groups["biggest losses"]) == ([2, 5], [1, 6])
    assert len(groups["random"]) == 2
    assert not {2, 5, 1, 6} & {*groups["random"]}
    assert dict(examples.pick_groups(leads, nobody, 6)) == groups
    disputed = dict(examples.pick_groups(leads, ("judge against people", gaps), 8))
    assert disputed["biggest wins"] == [2, 5] and disputed["biggest losses"] == [1, 6]
    assert disputed["judge against people"] == [7, 4], "1 is among the losses already"
    everything = examples.pick_groups(leads, ("judge against people", gaps), 60)
    assert sorted(place for _, group in everything for place in group) == list(range(9))
    assert [group for _, group in examples.pick_groups([], ("", []), 60)] == [[], [], [], []]
    alone = dict(examples.pick_groups([1.0, None, None, None, None, None], ("", []), 6))
    assert (alone["biggest wins"], alone["biggest losses"]) == ([0], [])
    none = dict(examples.pick_groups([0.0, 0.0, 1.0, 0.0], ("", []), 6))
    assert (none["biggest wins"], none["biggest losses"]) == ([2], []), "a tie is no win"


def test_examples_are_of_the_headline_judge(tmp_path: Path) -> None:
    make_comparison(tmp_path, [f"t{i}" for i in range(9)], lead=0.0)
    metrics = files.read_json(tmp_path / "comparison" / "metrics.json")
    rows = examples.select(RunDirectory(tmp_path), metrics, 60)
    assert len(rows) == 9
    first = {"side": "tuned", "text": "t8", "score": 1.0, "tokens": None, "repeated": False}
    assert rows[0]["answers"][0] == first
    assert [row["group"] for row in rows] == ["biggest wins"] * 3 + ["biggest losses"] * 3 + ["random"] * 3
    assert rows[3]["id"] == "0"
    assert [said["judge"] for said in rows[0]["verdicts"]] == ["judge", "reward"]
    files.write_jsonl(tmp_path / "predictions" / "tuned" / "text.jsonl", [{"id": "8", "tokens": 7, "kl": 1.5}])
    row = examples.select(RunDirectory(tmp_path), metrics, 60)[0]
    assert (row["answers"][0]["tokens"], row["kl"]) == (7, 1.5)


def test_ticks_are_round_and_inside() -> None:
    assert charts.ticks(0, 1000) == [0, 200, 400, 600, 800, 1000]
    assert charts.ticks(-0.3, 1.02) == pytest.approx([-0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for low, high in [(0.0, 1.0), (-3.7, 12.2), (1e-6, 3e-6), (5000.0, 5001.0), (-90000.0, 250000.0)]:
        found = charts.ticks(low, high)
        assert 3 <= len(found) <= 8
        assert low <= found[0] + 1e-9 * abs(low)
        assert found[-1] <= high * (1 + 1e-9)
    assert [charts.number(x) for x in (0.0, -0.5, 200.0, 12000.0, 1e-15)] == ["0", "−0.5", "200", "12k", "0"]


def test_points_lie_where_the_axes_say() -> None:
    longest = max(len(charts.number(value)) for value in charts.ticks(-0.0013, 0.0002))
    assert 7 * longest <= charts.LEFT - 7 - 14, "beside the axis's name, which ends at 14, a digit being 7 wide"
    axes = charts.Axes((0.0, 10.0), (-1.0, 1.0))
    assert axes.place((0, -1)) == (charts.LEFT, charts.HEIGHT - charts.BOTTOM)
    assert axes.place((10, 1)) == (charts.WIDTH - charts.RIGHT, charts.TOP)
    drawn = charts.draw("t", [charts.Series("s", [(0, -1), (10, 1)], 1)], "x", "y", "c", axes)
    assert drawn is not None
    assert f'points="{charts.LEFT:.1f},{charts.HEIGHT - charts.BOTTOM:.1f} ' in drawn.svg
    assert 'data-range="0 10 -1 1"' in drawn.svg
    assert charts.draw("t", [charts.Series("s", [], 1)], "x", "y", "c") is None
    assert charts.draw("t", [charts.Series("s", [(1, 5)], 1)], "x", "y", "c") is not None


def test_many_points_become_means_on_a_band() -> None:
    points = [(float(x), float(x % 2)) for x in range(2 * charts.MOST_POINTS)]
    means, band = charts.grouped(points)
    assert means == [(2 * i + 0.5, 0.5) for i in range(charts.MOST_POINTS)]
    assert band[0] == (0.5, 1.0)
    assert band[-1] == (0.5, 0.0)
    assert charts.grouped(points[:10]) == (points[:10], [])


def test_an_interval_is_drawn_to_scale() -> None:
    svg = charts.interval(0.75, 0.5, 1.0, 1)
    assert '<line class="span c1" x1="120.0" x2="234.0"' in svg
    assert '<circle class="dot c1" cx="177.0"' in svg


def test_nulls_are_no_points(tmp_path: Path) -> None:
    rows = [{"step": 1, "a": None}, {"step": 2, "a": 0.5}, {"step": 3}]
    assert figures.points(rows, "a") == [(2.0, 0.5)]
    assert figures.summary("Training", [(1, -0.5), (9, 2.25), (10, 1.0)], "highest") == (
        "Training: −0.5 at step 1, 1 at step 10, highest 2.25 at step 9."
    )
    metrics.Metrics(tmp_path / "policy" / "metrics.jsonl").append(1, {"reward": math.nan})
    assert figures.policy(RunDirectory(tmp_path).policy, None) == []


def test_facts_are_told_in_order_without_nulls() -> None:
    assert page.facts({"b": {"x": 1, "y": None}, "a": 0.123456}) == [("b x", "1"), ("a", "0.1235")]
    assert page.facts({"files": ["x", 0.123456], "none": []}) == [("files", "x, 0.1235")]


def test_the_stage_writes_a_file_or_into_a_folder(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run", ["a", "b", "c"])
    page.main(make_recipe(), {"run": root}, root)
    page.main(make_recipe(), {"run": root}, tmp_path / "page.html")
    assert (root / "report.html").read_bytes() == (tmp_path / "page.html").read_bytes()
    with pytest.raises(PlatformError, match="no such run directory"):
        page.main(make_recipe(), {"run": tmp_path / "none"}, tmp_path / "page.html")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    root = make_run(tmp_path, ["a", "b", "c"])
    (root / "reward" / "quality.json").write_text('{"test":\n')
    with pytest.raises(DataError, match=r"quality\.json:2: not JSON"):
        page.render(make_recipe(), root)


def test_colours_can_be_read() -> None:
    """WCAG 2.2 contrast of every text and mark colour on both backgrounds, light and dark: 4.5, marks 3."""
    style = (page.PAGE / "style.css").read_text()
    schemes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(schemes) == 2
    for colours in schemes:
        for ground in ("page", "card"):
            for ink in ("ink", "soft", "c1", "c2", "c3", "c4", "c5", "c6"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground, colours[ink])
        for ink, ground in (("warn", "warn-page"), ("ink", "warn-page"), ("ink", "added"), ("ink", "removed")):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_report_needs_no_torch() -> None:
    program = (
        "import sys, preferent.report.page\n"
        "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules), 'a heavy library was imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
