"""Runs survive: signals, data that changed, a run directory that moved, was copied or cannot be written, a full disk.

What was counted is recorded as [what, how many, differences, partial loads].
"""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.test_mistakes import content, here, main, pairs, write

from preferent import files
from preferent.cli import arguments
from preferent.errors import Interrupted
from preferent.pipelines.launchers import child_process
from preferent.runs import interruption, stages

Record = Callable[[str, object], None]

RECIPE = """
large_model_reference: model
preference_dataset: pairs.jsonl
prompt_dataset: prompts.jsonl
prompt_sequence_length: 24
target_sequence_length: 8
precision: fp32
device: cpu
threads: 1
checkpoint_every: 1
reward_model_train_steps: 2
reinforcement_learning_train_steps: 3
data: {validation_share: 0.1, test_share: 0.1}
compare: {judge: reward}
reward: {normalize_prompts: 2, batch_size: 4}
ppo: {batch_size: 4, epochs: 1, validation_every: 1, validation_prompts: 2}
"""
RESULTS = ("reward/model/*.safetensors", "policy/model/*.safetensors", "*/metrics.jsonl", "policy/rollouts/*")


def results(folder: Path) -> dict[str, bytes]:
    """What must be equal to the last bit in a run that is done."""
    places = (*RESULTS, "policy/score.json", "predictions/*/text.jsonl", "comparison/*.json*", "data/*/*.jsonl")
    files = sorted({file for place in places for file in folder.glob(place)} - {folder / "comparison/stage.json"})
    assert (folder / "comparison/DONE").exists()
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def halves(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a run that is done in `whole`, and in `half` one that was stopped in the policy's stage."""
    folder = tmp_path_factory.mktemp("survival")
    shutil.copytree(tiny, folder / "model", ignore=shutil.ignore_patterns("stage.json", "DONE", ".*"))
    (folder / "recipe.yaml").write_text(RECIPE)
    ppo = importlib.import_module("preferent.training.ppo")
    learn = ppo.learn

    def interrupted(recipe: object, state: object, *words: object) -> object:
        if state.step == 2:
            raise Interrupted("stopped", signal.SIGTERM)
        return learn(recipe, state, *words)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(child_process, "run_here", here)
        write("pairs.jsonl", [*pairs()])
        write("prompts.jsonl", [{"input_text": row["input_text"]} for row in pairs()[:30]])
        assert main("run", "recipe.yaml", "--out", "whole") == 0
        patch.setattr(ppo, "learn", interrupted)
        assert main("run", "recipe.yaml", "--out", "half") == 143
    assert (folder / "half/policy/checkpoints/step-000002").exists()
    return folder


@pytest.fixture
def work(halves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to harm."""
    shutil.copytree(halves, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(child_process, "run_here", here)
    return tmp_path / "work"


def edited(file: str, **changes: object) -> Callable[[], None]:
    def edit() -> None:
        rows = files.read_jsonl(Path(file))
        write(file, [rows[0] | changes, *rows[1:]])

    return edit


def another_format() -> None:
    assert main("data", "convert", "pairs.jsonl", "--to", "trl", "--out", "trl.jsonl") == 0
    Path("trl.jsonl").rename("pairs.jsonl")


def another_tokenizer() -> None:
    path = Path("model/tokenizer_config.json")
    files.write_json(path, files.read_json(path) | {"add_bos_token": False})


MODEL = "input model: its content changed (weights, tokenizer or chat template): "
CHANGES: dict[str, tuple[Callable[[], None], str]] = {
    "a row added": (lambda: write("pairs.jsonl", [*pairs(), pairs(41)[40]]), "input preference_dataset.0: "),
    "a row removed": (lambda: write("pairs.jsonl", [*pairs()[1:]]), "input preference_dataset.0: "),
    "a row edited": (edited("pairs.jsonl", candidate_0=" be it"), "input preference_dataset.0: "),
    "rows in another order": (lambda: write("pairs.jsonl", [*reversed(pairs())]), "input preference_dataset.0: "),
    "a choice turned": (edited("pairs.jsonl", choice=1), "input preference_dataset.0: "),
    "the same rows in another format": (another_format, "input preference_dataset.0: "),
    "a prompt edited": (edited("prompts.jsonl", input_text="Mary"), "input prompt_dataset.0: "),
    "another tokenizer": (another_tokenizer, MODEL),
    "another template": (lambda: Path("model/chat_template.jinja").write_text("{{ messages[0].content }}"), MODEL),
}


def test_data_changed_under_a_resume_is_refused_and_put_back_it_goes_on(
    work: Path, capfd: pytest.CaptureFixture[str], record_property: Record
) -> None:
    whole, half, differences = results(Path("whole")), content("half"), 0
    for name, (change, expected) in CHANGES.items():
        shutil.copytree("model", "kept")
        kept = {file: Path(file).read_bytes() for file in ("pairs.jsonl", "prompts.jsonl")}
        change()
        capfd.readouterr()
        code = main("run", "recipe.yaml", "--out", "half")
        said = capfd.readouterr().err
        assert expected in said, (name, said)
        assert "Go back to the old values; or start again" in said
        differences += code != 2 or content("half") != half
        shutil.rmtree("model")
        Path("kept").rename("model")
        for file, data in kept.items():
            Path(file).write_bytes(data)
    assert main("run", "recipe.yaml", "--out", "half") == 0
    differences += results(Path("half")) != whole
    record_property("survival", ["data changed under a resume, then put back", len(CHANGES), differences])
    assert differences == 0


def moved() -> Path:
    Path("far/away").mkdir(parents=True)
    return Path("half").rename("far/away/half")


def copied() -> Path:
    subprocess.run(["cp", "-r", "half", "copy"], check=True)
    shutil.rmtree("half")
    return Path("copy")


def set_back() -> Path:
    for number, path in enumerate(sorted(Path("half").rglob("*"))):
        os.utime(path, (4e9 - number, 4e9 - number))
    return Path("half")


@pytest.mark.parametrize("harm", [moved, copied, set_back])
def test_a_half_done_run_goes_on(
    work: Path, harm: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    whole = results(Path("whole"))
    out = harm()
    if harm is set_back:
        clock = time.time
        monkeypatch.setattr(time, "time", lambda: clock() - 1e9)
    assert main("run", "recipe.yaml", "--out", str(out)) == 0
    differences = int(results(out) != whole)
    what = {moved: "moved", copied: "copied", set_back: "with the clock set back"}[harm]
    record_property("survival", [f"half-done run {what}", 1, differences])
    assert differences == 0


def test_damage_to_what_a_half_done_run_goes_on_from(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The rollouts that come next and the newest checkpoint: told, made again, and the same bits."""
    whole = results(Path("whole"))
    for file in ("rollouts/000002.safetensors", "checkpoints/step-000002/00000.safetensors"):
        path = Path("half/policy", file)
        data = bytearray(path.read_bytes())
        data[-40] ^= 4
        path.write_bytes(data)
    assert main("run", "recipe.yaml", "--out", "half") == 0
    said = capfd.readouterr().err
    assert "rollouts/000002.safetensors: damaged" in said
    assert "step-000002: 00000.safetensors is damaged" in said
    assert results(Path("half")) == whole


def test_a_run_that_cannot_be_written_is_read(work: Path, record_property: Record) -> None:
    """As root, who writes everywhere, on a read-only mount; where neither is to be had, skipped."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    before, differences = content("whole"), 0
    inside: list[str] = []
    if os.geteuid() == 0:
        mounts = 'mount --bind whole whole && mount -o remount,bind,ro whole && exec "$@"'
        inside = ["unshare", "-rm", "sh", "-c", mounts, "sh"]
        if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode:
            pytest.skip("root writes everywhere, and there is no mounting here")
    else:
        subprocess.run(["chmod", "-R", "a-w", "whole"], check=True)
    try:
        for words, codes, expected in (
            (["doctor", "whole"], (0, 4), "whole: "),
            (["run", "recipe.yaml", "--out", "whole"], (3,), "whole: cannot be used as a run directory: "),
        ):
            argv = [*inside, sys.executable, "-m", "preferent", *words]
            done = subprocess.run(argv, env=environment, capture_output=True, text=True)
            assert done.returncode in codes and expected in done.stdout + done.stderr, done.stderr
            assert "Traceback" not in done.stderr and "bug in preferent" not in done.stderr
    finally:
        subprocess.run(["chmod", "-R", "u+w", "whole"], check=True)
    differences += content("whole") != before
    record_property("survival", ["read-only run directory: read, and refused with exit code 3", 2, differences])
    assert differences == 0


def test_a_signal_at_the_very_end_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, signal, time; signal.signal(15, lambda *_: os._exit(0)); os.kill(os.getppid(), 15); time.sleep(20)"
    )
    assert child_process.run_here([sys.executable, "-c", code]) == 143
    _, text, fill = arguments.VERBS["env"]
    signalled = (lambda given: setattr(interruption.stop(), "signal_number", signal.SIGTERM), text, fill)
    monkeypatch.setitem(arguments.VERBS, "env", signalled)
    assert main("env") == 143


def test_a_finished_stage_without_its_stage_file_is_not_touched_and_once_removed_done_again(work: Path) -> None:
    whole = results(Path("whole"))
    Path("whole/policy/stage.json").unlink()
    before = content("whole/policy")
    assert main("run", "recipe.yaml", "--out", "whole") == 2
    assert content("whole/policy") == before
    shutil.rmtree("whole/policy")
    assert main("run", "recipe.yaml", "--out", "whole") == 0
    assert results(Path("whole")) == whole
    assert stages.read_stage(Path("whole/policy"))["stage"] == "ppo"
