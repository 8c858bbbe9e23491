"""Runs, models and files of answers side by side: what is missing is made, nothing is made twice, and what is wrong is
said before anything is made."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preferent import files
from preferent.cli import arguments
from preferent.commands import compare_runs, comparison_sides, judge_selection
from preferent.config import recipe
from preferent.data.types import Judgment
from preferent.errors import DataError, PlatformError, PreferentError, UsageError
from preferent.evaluation import comparison_summary, statistics, verdict_sentence
from preferent.evaluation.statistics import paired_tests
from preferent.labeling import serving

WORDS = ["the old man", "a silver key", "the cold wind"]


def answered(path: Path, texts: list[str], **more: Any) -> Path:
    """A file of somebody's answers to the words."""
    files.write_jsonl(path, [{"prompt": p, "answer": t} | more for p, t in zip(WORDS, texts, strict=True)])
    return path


def command(*words: str | Path) -> None:
    given = arguments.parser().parse_args([str(word) for word in words])
    given.do(given)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that are run, without running those of `infer` and `report`."""
    words: list[tuple[str, ...]] = []
    real = compare_runs.do

    def do(*given: str) -> None:
        words.append(given)
        if given[0] == "infer":
            out, prompts = Path(given[-1]), Path(given[given.index("--in") + 3].removeprefix("prompts="))
            rows = [json.loads(line) for line in prompts.read_text().splitlines()]
            told = " ".join(given)
            files.write_jsonl(out / "text.jsonl", [
                {"inputs": {"inputs_pretokenized": row["input_text"]}, "prediction": f"{out.name} {'seed=1' in told}"}
                for row in rows
            ])  # fmt: skip
        elif given[0] != "report":
            real(*given)

    monkeypatch.setattr(compare_runs, "do", do)
    return words


def model(folder: Path) -> Path:
    files.write_json(folder / "config.json", {})
    return folder


def finished(folder: Path, **values: Any) -> Path:
    """A run's folder with answers of base and tuned model."""
    found, _ = recipe.parse({"large_model_reference": "x", "preference_dataset": "p.jsonl"} | values)
    files.write_atomic(folder / "recipe.yaml", recipe.dump(found))
    for name, text in {"tuned": "Tuned.", "base": "Base."}.items():
        rows = [{"inputs": {"inputs_pretokenized": p}, "prediction": text, "id": p} for p in WORDS]
        files.write_jsonl(folder / f"predictions/{name}/text.jsonl", rows)
    for part in ("train", "test"):
        files.write_jsonl(
            folder / f"data/prompt/{part}.jsonl", [{"input_text": p, "id": p, "tags": [p[0]]} for p in WORDS]
        )
    return folder


def votes(path: Path, choice: str, a: str = "Tuned.", b: str = "Base.") -> Path:
    from preferent.data import judgments

    given = [Judgment(p, "", p, a, b, choice, 1.0, "people", "", {"annotator": "ann"}) for p in WORDS]  # type: ignore[arg-type]
    judgments.write(given, path)
    return path


def test_two_files_of_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    answered(Path("mine.jsonl"), ["x", "y", "z"])
    Path("theirs.csv").write_text("question,said,topic\n" + "".join(f"{p},{p[::-1]},t\n" for p in WORDS[::-1]))
    with pytest.raises(
        DataError, match=r"theirs\.csv:2: not a prediction row: no column holds the answer.*--answer-column"
    ):
        command("compare", "mine.jsonl", "theirs.csv")
    Path("theirs.csv").write_text("prompt,answer,topic\n" + "".join(f"{p},{p[::-1]},t\n" for p in WORDS[::-1]))
    command("compare", "mine.jsonl", "theirs.csv", "--write", "comparator,csv", "--names", "we,they")
    told = capsys.readouterr().out
    assert "no judge compared we with they" in told
    assert "runs/compare-we-they/comparison/comparator.json: 3 examples" in told
    found = files.read_json(Path("runs/compare-we-they/comparison/metrics.json"))
    assert [each["name"] for each in found["sides"]] == ["we", "they"]
    rows = files.read_jsonl(Path("runs/compare-we-they/comparison/answers.jsonl"))
    assert [(row["answers"]["a"]["text"], row["answers"]["b"]["text"]) for row in rows] == [
        ("x", "nam dlo eht"), ("y", "yek revlis a"), ("z", "dniw dloc eht"),
    ]  # fmt: skip


@pytest.mark.acceptance
def test_people_judge_two_files_and_what_was_judged_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = answered(tmp_path / "a.jsonl", ["Tuned."] * 3, topic="law"), answered(tmp_path / "b.jsonl", ["Base."] * 3)
    files.write_jsonl(b, [row | {"id": row["prompt"]} for row in files.read_jsonl(b)])
    files.write_jsonl(a, [row | {"id": row["prompt"]} for row in files.read_jsonl(a)])
    people = votes(tmp_path / "people.jsonl", "B", "Base.", "Tuned.")  # who saw the base first
    words = ["compare", a, b, "--judge", f"people={people}", "--out", tmp_path / "out", "--write", "preferences,alpaca"]
    command(*words)
    assert "one person prefers a to b in 100.0% of 3 verdicts" in capsys.readouterr().out
    rows = files.read_jsonl(tmp_path / "out/comparison/preferences.jsonl")
    assert [(row["input_text"], row[f"candidate_{row['choice']}"]) for row in rows] == [(p, "Tuned.") for p in WORDS]
    assert [row["preference"] for row in files.read_json(tmp_path / "out/comparison/annotations.json")] == [2.0] * 3
    stage = (tmp_path / "out/comparison/metrics.json").stat().st_mtime_ns
    command(*words)
    assert (tmp_path / "out/comparison/metrics.json").stat().st_mtime_ns == stage
    (tmp_path / "out/comparison/annotations.json").unlink()
    command("compare", tmp_path / "out/comparison", "--write", "alpaca")
    assert (tmp_path / "out/comparison/annotations.json").exists()
    assert (tmp_path / "out/comparison/metrics.json").stat().st_mtime_ns == stage


def test_models_answer_first_with_the_recipe_of_the_run(tmp_path: Path, done: list[tuple[str, ...]]) -> None:
    run_folder = finished(tmp_path / "one", instruction="Be kind.", target_sequence_length=7)
    (run_folder / "policy/model").mkdir(parents=True)
    files.write_atomic(run_folder / "policy/DONE", "")
    files.write_jsonl(tmp_path / "p.jsonl", [{"prompt": p} for p in WORDS])
    answers = answered(tmp_path / "bot.jsonl", ["x", "y", "z"])
    sides = [run_folder, model(tmp_path / "net"), answers]
    command("compare", *sides, "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "out")
    made = [words for words in done if words[0] == "infer"]
    assert [words[words.index("--in") + 1] for words in made] == [
        f"model={run_folder}/policy/model", f"model={tmp_path}/net",
    ]  # fmt: skip
    assert all("infer.best_of=1" in words for words in made)
    found, _ = recipe.load(tmp_path / "out/recipe.yaml")
    assert (found.instruction, found.target_sequence_length, found.preference_dataset) == ("Be kind.", 7, None)
    metrics = files.read_json(tmp_path / "out/comparison/metrics.json")
    assert [each["name"] for each in metrics["sides"]] == ["one", "net", "bot"]


def test_answers_of_two_runs_are_there_already(tmp_path: Path, done: list[tuple[str, ...]]) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two")
    command("compare", one, two, "--out", tmp_path / "out")
    assert [words[0] for words in done] == ["compare"]
    rows = files.read_jsonl(tmp_path / "out/comparison/answers.jsonl")
    assert [row["tags"] for row in rows] == [["t"], ["a"], ["t"]]  # from the run's prompts


def test_a_judge_that_cannot_be_asked_changes_no_run(tmp_path: Path, done: list[tuple[str, ...]]) -> None:
    folder = finished(tmp_path / "one")
    before = (folder / "recipe.yaml").read_bytes()
    with pytest.raises(PreferentError) as failure:
        command("compare", folder, "--judge", "http://127.0.0.1:1/v1#some/model", "--key-variable", "NOT_SET_AT_ALL")
    assert failure.value.exit_code == UsageError.exit_code
    assert (folder / "recipe.yaml").read_bytes() == before
    assert [words[0] for words in done] == ["compare"]


def test_what_is_wrong_is_said_before_anything_is_made(
    tmp_path: Path, done: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = answered(tmp_path / "a.jsonl", ["x"] * 3), answered(tmp_path / "b.jsonl", ["y"] * 3)
    c = tmp_path / "c.jsonl"
    files.write_jsonl(c, files.read_jsonl(b)[:2])
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "runs").mkdir()
    wrong: list[tuple[list[Any], type[PreferentError], str]] = [
        ([a], UsageError, "is neither a run nor a comparison; name a second side"),
        ([a, tmp_path / "d.jsonl"], PlatformError, r"d\.jsonl: no such file"),
        ([a, "runs/nope"], PlatformError, "runs/nope: no such file or folder"),
        ([a, "x/y/z"], PlatformError, "x/y/z: no such file or folder"),
        ([a, "nope"], UsageError, "nope: is no file or folder here, so it is taken for a model; name the prompts"),
        ([a, b, c], DataError, "a and c do not answer the same prompts: 1 of 3 are only in a, 0 of 2 only in c"),
        ([a, empty], UsageError, r"empty: is neither a run .*nor a model .*nor answers"),
        ([a, model(tmp_path / "net")], UsageError, "net: is a model; name the prompts that it is to answer: --prompts"),
        ([a, b, "--names", "x"], UsageError, "names 1 sides; there are 2"),
        ([a, b, "--names", "x,x"], UsageError, "two sides have the same name"),
        ([a, b, "--names", "x,a/b"], UsageError, "made of letters"),
        ([a, b, "--judge", tmp_path / "none"], PlatformError, "a judge is a reward model's folder, people=FILE"),
        ([a, b, "--judge", "people=nobody.jsonl"], PlatformError, "no such file or folder"),
        ([a, b, "--judge", empty, "--judge", empty], UsageError, "there can be one reward model"),
        ([a, b, "--votes", "2"], UsageError, "votes: is for language models"),
        ([a, b, "--write", "excel"], UsageError, "is not a format"),
        ([a, b, "--answer-column", "sad", "--tag-columns", "topic"], UsageError, "sad, topic: no file of answers has"),
        ([a, b, "--in", "a=x"], UsageError, "--in is for the stage alone"),
        (["--recipe", a], UsageError, r"--out is missing"),
        (
            ["--recipe", a, "--out", tmp_path / "o", "--prompts", a],
            UsageError,
            "--prompts is for a comparison of named sides",
        ),
        (
            [finished(tmp_path / "one"), "--names", "x,y"],
            UsageError,
            "one run alone is compared on its own test prompts",
        ),
    ]
    for words, kind, message in wrong:
        with pytest.raises(kind, match=message):
            command("compare", *words)
    assert not done
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.acceptance
def test_a_comparison_is_a_page_with_the_names_of_its_sides(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for path, text in ((one, "x"), (two, "y")):
        files.write_jsonl(path, [{"id": p, "prompt": p, "answer": text} for p in WORDS])
    page, people = tmp_path / "page.html", votes(tmp_path / "people.jsonl", "A", "x", "y")
    command("compare", one, two, "--out", tmp_path / "out", "--judge", f"people={people}", "--html", page)
    text = page.read_text()
    assert "win rate of one against two" in text and "one’s answer was preferred on 3, two’s on 0." in text
    assert '"models": {"tuned": "one", "base": "two"}' in text
    assert "tuned model" not in text.split("<script")[0] and "base model" not in text.split("<script")[0]
    assert "Loss curves" not in text and "Missing," not in text
    alone = tmp_path / "alone"
    (tmp_path / "out/comparison").rename(alone)
    with pytest.raises(UsageError, match=r"--html .*recipe\.yaml does not exist"):
        command("compare", alone, "--html", page)


def verdict_of(win: int, tie: int, loss: int) -> dict[str, Any]:
    rate = statistics.win_rate([1.0] * win + [0.5] * tie + [0.0] * loss, list(map(str, range(win + tie + loss))))
    judge = dataclasses.asdict(rate)
    return {"headline": "judge", "judges": {"judge": judge}, "sample_size": comparison_summary.needed(judge)}


def test_an_open_verdict_says_how_many_prompts_it_takes() -> None:
    told = verdict_sentence.advice(verdict_of(55, 0, 45))[0]
    assert "100 prompts show a rate of 64% or more four times in five" in told
    assert told.endswith(f"to see one of 55% you need about {paired_tests.sample_size(0.55)}")
    assert verdict_sentence.advice(verdict_of(50, 0, 50))[0].endswith(
        f"51% you need about {paired_tests.sample_size(0.51)}"
    )
    assert verdict_sentence.advice(verdict_of(90, 0, 10)) == []
    assert "too few to show any difference" in verdict_sentence.advice(verdict_of(1, 1, 1))[0]
    assert "too few to show any difference" in verdict_sentence.advice(verdict_of(0, 9, 0))[0]
    assert verdict_sentence.advice({"headline": None}) == []
    assert comparison_summary.needed(verdict_of(55, 0, 45)["judges"]["judge"])["prompts"] == paired_tests.sample_size(
        0.55
    )


def test_what_sides_are_called(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "x/run"), finished(tmp_path / "y/run")
    text = answered(tmp_path / "z/text.jsonl", ["x"] * 3)
    net = model(tmp_path / "policy/model")
    words = [str(word) for word in (one, two, text, text.parent, net)]
    assert [(each.name, each.kind) for each in comparison_sides.of([*words, "owner/Some.Model@v1"])] == [
        ("run", "run"), ("run-2", "run"), ("z", "file"), ("z-2", "file"), ("policy", "model"),
        ("Some-Model-v1", "model"),
    ]  # fmt: skip


def test_who_judges(tmp_path: Path) -> None:
    reward, people = model(tmp_path / "reward"), votes(tmp_path / "p.jsonl", "A")
    words = [
        "http://localhost:8000/v1#org/Model-1.5",
        "local:org/Model-1.5",
        "local:reward",
        str(reward),
        f"people={people}",
    ]
    found = judge_selection.of(words, {"task": "summarization", "votes": 3})
    assert found.inputs == {"judge": reward, "people": people}
    assert [(one["name"], one["model"], one.get("url"), one["votes"]) for one in found.judges] == [
        ("Model-1-5", "org/Model-1.5", "http://localhost:8000/v1", 3),
        ("Model-1-5-2", "org/Model-1.5", None, 3),
        ("reward-2", "reward", None, 3),
    ]
    values = {"large_model_reference": "x", "compare": {"judges": found.judges}}
    assert len(recipe.parse(values)[0].compare.judges) == 3  # names that a recipe takes


def test_the_prompts_file_says_what_files_of_ids_and_answers_do_not(tmp_path: Path) -> None:
    files.write_jsonl(tmp_path / "p.jsonl", [{"prompt": p, "id": str(i), "tags": ["t"]} for i, p in enumerate(WORDS)])
    for name in ("a", "b"):
        files.write_jsonl(tmp_path / f"{name}.jsonl", [{"id": str(i), "answer": f"{name}{i}"} for i in range(3)])
    sides = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    command("compare", *sides, "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "out")
    rows = files.read_jsonl(tmp_path / "out/comparison/answers.jsonl")
    assert [(row["prompt"], row["tags"]) for row in rows] == [(p, ["t"]) for p in WORDS]


def test_people_may_be_a_folder_that_holds_their_judgments(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match=r"the folder has no judgments\.jsonl"):
        judge_selection.of([f"people={tmp_path}"], {})
    there = votes(tmp_path / "judgments.jsonl", "A")
    assert judge_selection.of([f"people={tmp_path}"], {}).inputs == {"people": there}
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="can be read only once"):
        judge_selection.of([f"people={tmp_path / 'pipe'}"], {})


FLAGS: list[list[str]] = [["--names", "x,y"], ["--out", "o"], ["--prompts", "p.jsonl"], ["--recipe", "r.yaml"]]
FLAGS += [["--shared"], ["--id-column", "n"], ["--tag-columns", "t"], ["--set", "seed=1"]]


def test_a_finished_comparison_stays_as_it_is_and_refuses_what_it_would_not_read(
    tmp_path: Path, done: list[tuple[str, ...]]
) -> None:
    a, b = answered(tmp_path / "a.jsonl", ["x"] * 3), answered(tmp_path / "b.jsonl", ["y"] * 3)
    command("compare", a, b, "--out", tmp_path / "out")
    done.clear()
    command("compare", tmp_path / "out", "--write", "csv")
    assert (tmp_path / "out/comparison/judgments.csv").is_file()
    for flag in FLAGS:
        with pytest.raises(UsageError, match=f"is a finished comparison.*leave out {flag[0]}"):
            command("compare", tmp_path / "out", *flag)
    one = finished(tmp_path / "one")
    for flag in FLAGS[:-1]:
        with pytest.raises(UsageError, match=f"one run alone.*leave out {flag[0]}"):
            command("compare", one, *flag)
    (tmp_path / "out/comparison/metrics.json").unlink()
    with pytest.raises(UsageError, match="comparison: is neither a run"):
        command("compare", tmp_path / "out/comparison")
    assert not done


def test_sampled_pairs_of_one_model_differ_by_the_seed(tmp_path: Path, done: list[tuple[str, ...]]) -> None:
    files.write_jsonl(tmp_path / "p.jsonl", [{"input_text": p} for p in WORDS])
    found = compare_runs.sample(tmp_path / "p.jsonl", [str(model(tmp_path / "net"))], tmp_path / "labels", 2)
    assert found.models == ("net", "net-2")
    assert [len(files.read_jsonl(path)) for path in (*found.predictions, found.prompts)] == [2, 2, 2]
    assert [[word for word in words if word.startswith("seed=")] for words in done] == [["seed=0"], ["seed=1"]]
    assert all("infer.sampling_strategy=temperature_sampling" in words for words in done)
    same = compare_runs.sample(tmp_path / "p.jsonl", [str(tmp_path / "net")], tmp_path / "labels", 2)
    assert same == found


def test_what_the_next_round_learns_from(
    make_run: Callable[..., Path], tmp_path: Path, done: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(instruction="Tell more.")
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(serving, "serve", lambda **given: asked.append(given))
    command("label", folder, "--on", "train", "--number", "1", "--annotators", "ann,bob")
    base = recipe.load(folder / "recipe.yaml")[0].large_model_reference
    assert [words[words.index("--in") + 1] for words in done] == [f"model={folder}/policy/model", f"model={base}"]
    given = asked[0]
    assert (given["models"], given["out"], given["annotators"]) == (
        ("tuned", "base"),
        folder / "labels/train",
        ("ann", "bob"),
    )
    assert given["predictions"] == tuple(
        folder / f"labels/train/answers/{name}/text.jsonl" for name in ("tuned", "base")
    )
    assert recipe.load(folder / "labels/train/recipe.yaml")[0].instruction == "Tell more."


def test_label_hands_its_words_to_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(serving, "serve", lambda **given: asked.append(given))
    monkeypatch.setattr(serving, "export", lambda folder: f"exported {folder}")
    command("label", "runs/x", "--strengths", "3", "--select", "informative", "--number", "9", "--port", "1234")
    command("label", "--predictions", "a.jsonl", "b.jsonl", "--out", "votes", "--columns", "p,x,y")
    command("label", "--file", "rows.jsonl", "--out", "votes", "--gold", "g.jsonl", "--gold-share", "0.2")
    assert [(one["folder"], one["file"], one["predictions"], one["out"]) for one in asked] == [
        (Path("runs/x"), None, None, None),
        (None, None, (Path("a.jsonl"), Path("b.jsonl")), Path("votes")),
        (None, Path("rows.jsonl"), None, Path("votes")),
    ]
    assert (asked[0]["strengths"], asked[0]["select"], asked[0]["number"], asked[0]["port"]) == (
        3,
        "informative",
        9,
        1234,
    )
    assert asked[1]["columns"] == ("p", "x", "y")
    assert (asked[2]["gold"], asked[2]["gold_share"]) == (Path("g.jsonl"), 0.2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--export"], "label: no folder for the votes; name a run, or add --out DIR"),
        (["--on", "train"], "label: no folder for the votes; name a run, or add --out DIR"),
        (["runs/x", "--on", "train", "--model", "m"], "--on train is for a run alone"),
        (["--model", "m", "--out", "x"], "--model answers prompts"),
        (["--model", "a", "--model", "b", "--model", "c", "--prompts", "p", "--out", "x"], "--model answers prompts"),
    ],
)
def test_label_says_what_it_wants(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        command("label", *words)


@pytest.mark.acceptance
def test_two_models_answer_and_a_reward_model_judges(
    make_run: Callable[..., Path], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models, prompts and a reward model's folder; twice, and the second time nothing is done again."""
    monkeypatch.chdir(tmp_path)
    folder = make_run()
    files.write_jsonl(tmp_path / "p.jsonl", [{"input_text": p} for p in WORDS])
    words = [
        "compare",
        folder,
        tiny,
        "--prompts",
        "p.jsonl",
        "--judge",
        folder / "reward/model",
        "--names",
        "tuned,tiny",
    ]
    words += ["--write", "comparator,preferences"]
    command(*words)
    out = tmp_path / "runs/compare-tuned-tiny"
    found = files.read_json(out / "comparison/metrics.json")
    assert (found["headline"], found["rows"], found["judges"]["judge"]["kind"]) == ("judge", 3, "reward_model")
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.json*") if "sides" not in path.parts}
    command(*words)
    again = {path for path, time in made.items() if path.stat().st_mtime_ns != time}
    assert {path.name for path in again} <= {"comparator.json", "preferences.jsonl", "prompts.jsonl"}


@pytest.mark.acceptance
def test_a_run_alone_is_judged_again_by_people(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """People's votes come to a run; its report shows them, and a second call does nothing."""
    folder = make_run(compare={"judge": "reward", "headline": "people"})
    for name, text in {"tuned": "Tuned.", "base": "Base."}.items():
        rows = [{"inputs": {"inputs_pretokenized": p}, "prediction": text, "id": p} for p in WORDS]
        files.write_jsonl(folder / f"predictions/{name}/text.jsonl", rows)
    files.write_jsonl(folder / "data/prompt/test.jsonl", [{"input_text": p, "id": p} for p in WORDS])
    votes(folder / "labels/judgments.jsonl", "A")
    command("compare", folder, "--write", "csv")
    assert "one person prefers the tuned model to the base in 100.0% of 3 verdicts" in capsys.readouterr().out
    found = files.read_json(folder / "comparison/metrics.json")
    assert set(found["judges"]) == {"reward", "people"}
    assert "people" in (folder / "report.html").read_text()
    first = (folder / "comparison/metrics.json").stat().st_mtime_ns
    command("compare", folder)
    assert (folder / "comparison/metrics.json").stat().st_mtime_ns == first
