"""Nothing that is not ours is touched: every stage and verb that writes, in folders that hold other things."""

import json
import shutil
from pathlib import Path

import pytest

from preferent import files
from preferent.cli.arguments import parser
from preferent.config import recipe, stage_graph
from preferent.errors import UsageError
from preferent.runs import ownership, stages

KEPT = Path(__file__).parent.parent / "data" / "run-0.1.0"
METHODS = {
    "ppo": [],
    "dpo": ["method=dpo"],
    "rejection": ["method=rejection_sampling"],
    "sft": ["sft.dataset=demonstrations.jsonl"],
}
RECIPE = """\
large_model_reference: model
preference_dataset: pairs.jsonl
prompt_sequence_length: 24
target_sequence_length: 8
device: cpu
threads: 1
precision: fp32
"""
STAGES = ("data", "sft", "reward", "ppo", "dpo", "rejection", "infer", "compare")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(*words: object) -> None:
    arguments = parser().parse_args([str(word) for word in words])
    arguments.do(arguments)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder of a user: a checkout, a thesis, notes, things that look unfinished, our inputs and a run of ours."""
    shutil.copytree(KEPT, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    (tmp_path / "home/recipe.yaml").write_text(RECIPE)
    for name in ("thesis.txt", ".git/config", ".cache.tmp-dir/a", "sub/.notes.tmp-1", "model.tmp-1/b", "text.jsonl"):
        files.write_atomic(tmp_path / "home" / name, "work")
    row = {"prompt": "What is tea?", "completion": "A drink."}
    files.write_jsonl(tmp_path / "home/demonstrations.jsonl", [row] * 40)
    return tmp_path / "home"


def task(stage: str) -> list[str]:
    """The words of a stage, as a run would call it, without `--out`."""
    settings = METHODS.get(stage, [])
    asked = recipe.load(Path("recipe.yaml"), settings)[0]
    tasks = [task.at(Path("run")) for task in stage_graph.build(asked)]
    words = list(next(task for task in tasks if task.stage == stage).command("run"))
    place = words.index("--recipe")
    words[place + 1] = "recipe.yaml"
    return [*words[: words.index("--out")], *(word for setting in settings for word in ("--set", setting))]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_refuses_a_folder_of_something_else(home, stage):
    before = snapshot(home)
    words = task(stage)
    for out in (".", "sub", "run", ".git"):
        with pytest.raises(UsageError, match=r"is not empty and holds no stage.*nothing there was touched.*--out"):
            call(*words, "--out", out)
    assert snapshot(home) == before


VERBS = {
    "scratch": ["scratch", "--text", "pairs.jsonl", "--vocab-size", 300, "--hidden-size", 16, "--layers", 1],
    "run": ["run", "recipe.yaml"],
    "compare": ["compare", "run/predictions/tuned", "run/predictions/base"],
    "label": ["label", "--predictions", "run/predictions/tuned/text.jsonl", "run/predictions/base/text.jsonl"],
    "label, sampled": ["label", "--prompts", "run/data/prompt/test.jsonl", "--model", "model"],
    "report": ["report", "--recipe", "recipe.yaml", "--in", "run=run"],
    "export": ["export", "run", "--what", "merged"],
}


@pytest.mark.parametrize("words", VERBS.values(), ids=VERBS)
@pytest.mark.parametrize("out", [".", "sub"])
def test_a_verb_refuses_a_folder_of_something_else(home, words, out):
    (home / out / "report.html").write_text("mine")
    before = snapshot(home)
    with pytest.raises(UsageError, match=r"not empty|is there already"):
        call(*words, "--out", out)
    assert snapshot(home) == before


def test_the_quickstart_refuses_a_folder_of_something_else(home):
    before = snapshot(home)
    with pytest.raises(UsageError, match="not empty"):
        call("quickstart", ".")
    assert snapshot(home) == before


def test_convert_refuses_to_write_over_what_it_reads(home):
    before = snapshot(home)
    with pytest.raises(UsageError, match="one of the files to read"):
        call("data", "convert", "pairs.jsonl", "--out", "pairs.jsonl")
    assert snapshot(home) == before


def test_notes_in_a_stage_that_starts_afresh_stay(tmp_path):
    folder, source = tmp_path / "answers", tmp_path / "prompts.jsonl"
    for number in range(3):
        source.write_text(f'{{"input_text": "{number}"}}\n')
        stage = stages.open_stage("infer", folder, {}, {"prompts": source}, rerun=True)
        assert not stage.done
        assert not (folder / "text.jsonl").exists()
        for name in ("text.jsonl", "parts/00000000-00000001.json", "notes.txt", "parts/mine.txt"):
            files.write_atomic(folder / name, "x")
        stage.finish(["text.jsonl"])
    stages.open_stage("infer", folder, {}, {}, rerun=True)
    assert snapshot(folder).keys() == {"stage.json", "notes.txt", "parts/mine.txt"}


def test_a_stage_of_another_name_is_not_emptied(tmp_path):
    stages.open_stage("scratch", tmp_path / "model", {}, {})
    files.write_atomic(tmp_path / "model/model.safetensors", "weights")
    with pytest.raises(UsageError, match="holds the stage scratch, not infer"):
        stages.open_stage("infer", tmp_path / "model", {}, {}, rerun=True)
    assert (tmp_path / "model/model.safetensors").exists()


def test_outputs_are_named_before_they_exist(tmp_path):
    for name in ownership.PATTERNS:
        stages.open_stage(name, tmp_path / name, {}, {})
        assert json.loads((tmp_path / name / "stage.json").read_text())["owns"] == ownership.owned(name)


def test_a_stage_without_a_list_owns_the_names_of_its_stage(tmp_path):
    source, folder = tmp_path / "prompts.jsonl", tmp_path / "predictions"
    source.write_text("old\n")
    shutil.copytree(KEPT / "run/predictions/base", folder)
    (folder / "notes.txt").write_text("mine")
    assert "owns" not in stages.read_stage(folder)
    stages.open_stage("infer", folder, {}, {"prompts": source}, rerun=True)
    assert snapshot(folder).keys() == {"stage.json", "notes.txt"}


@pytest.mark.parametrize("stage", sorted({path.parent.name for path in KEPT.glob("run/**/stage.json")} | {"model"}))
def test_a_finished_stage_holds_nothing_that_it_does_not_own(stage):
    for description in [*KEPT.glob(f"run/**/{stage}/stage.json"), *KEPT.glob(f"{stage}/stage.json")]:
        folder = description.parent
        own = ownership.patterns_in(stages.read_stage(folder))
        assert {path for path in folder.rglob("*") if path.is_file()} == set(ownership.present(folder, own))


def test_only_temporaries_of_our_names_are_swept(tmp_path):
    ours = (
        *(".metrics.jsonl.tmp-7", "rollouts/.000001.safetensors.tmp-7", ".model.tmp-7/a", ".DONE.tmp-12"),
        *("checkpoints/.step-000003.tmp-7/a", "best/.step-000003.tmp-7/a"),
    )
    others = (
        *(".cache.tmp-dir/a", "sub/.notes.tmp-1", ".thesis.txt.tmp-7", ".metrics.jsonl.tmp-7b", ".models.tmp-7/a"),
        *("checkpoints/.mine.tmp-7/a", "sub/.model.tmp-7/a", "rollouts/.000001.txt.tmp-7"),
    )
    stages.open_stage("ppo", tmp_path, {}, {})
    for name in (*ours, *others):
        files.write_atomic(tmp_path / name, "x")
    stages.open_stage("ppo", tmp_path, {}, {})
    assert snapshot(tmp_path).keys() == {"stage.json", *others}


def test_nothing_behind_a_link_is_removed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    files.write_atomic(elsewhere / "0-1.json", "mine")
    folder = tmp_path / "answers"
    stages.open_stage("infer", folder, {"a": 1}, {}, rerun=True)
    (folder / "parts").symlink_to(elsewhere)
    stages.open_stage("infer", folder, {"a": 2}, {}, rerun=True)
    assert (elsewhere / "0-1.json").exists()


@pytest.mark.parametrize("kind", ["stage", "run", "labels"])
def test_an_empty_folder_or_volume_is_taken(tmp_path, kind):
    (tmp_path / "lost+found").mkdir()
    for name in (".lock", ".stage.json.tmp-5", ".run.json.tmp-5", ".recipe.yaml.tmp-5"):
        (tmp_path / name).touch()
    with stages.locked(tmp_path, kind), stages.locked(tmp_path / "new", kind):
        pass


@pytest.mark.parametrize("name", ["recipe.yaml", "run.json"])
def test_a_run_is_told_by_the_files_that_we_wrote(tmp_path, name):
    (tmp_path / name).write_text('{"kl_coeff": 0.1, "stages": 3}')
    assert not ownership.holds_run(tmp_path)
    shutil.copy(KEPT / "run" / name, tmp_path / name)
    assert ownership.holds_run(tmp_path)
    (tmp_path / name).write_text((name == "run.json" and '{"schema": 1, "stages": {}}') or recipe.dump(_recipe()))
    assert ownership.holds_run(tmp_path)
    (tmp_path / name).write_bytes(b"\xff{")
    assert not ownership.holds_run(tmp_path)


def _recipe() -> recipe.Recipe:
    return recipe.parse({"large_model_reference": "model"})[0]
