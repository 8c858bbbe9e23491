"""A run: stages in order, nothing done twice, a failure that names the stage and the way on, a door for notebooks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

import preferent
from preferent import files
from preferent.cli.arguments import parser
from preferent.commands.python_api import Run
from preferent.config import model_reference, model_shape, recipe, run_schema, stage_graph
from preferent.doctor.findings import SICK, Finding
from preferent.errors import DataError, Interrupted, PlatformError, PreferentError, UsageError
from preferent.evaluation import verdict_sentence
from preferent.files import TICK, write_atomic
from preferent.pipelines import executor, next_round, run_summary
from preferent.pipelines.launchers import child_process
from preferent.runs import interruption
from preferent.runs.stages import locked, open_stage, read_stage

VALUES = {"large_model_reference": "base", "preference_dataset": "p.jsonl"}
RECIPE = {"large_model_reference": "m", "preference_dataset": "old.jsonl"}
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
LLAMA = {"model_type": "llama"} | dict.fromkeys(SIZES, 8)
RERUN = ("infer", "compare")


class Stages:
    """Stands in for the process that does a stage: writes outputs that depend on the stage's fields and inputs."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, int] = {}
        self.pause = 0.0

    def __call__(self, argv, cwd=None, env=None):
        assert argv[:3] == [sys.executable, "-m", "preferent"]
        given = parser().parse_args(argv[3:])
        found, by_default = recipe.load(given.recipe, given.settings)[0], {}
        folder = given.out.relative_to(given.recipe.parent).as_posix()
        task = next(task for task in stage_graph.build(found) if task.folder == folder)
        self.calls.append(task.name)
        if task.name in self.fail:
            return self.fail[task.name]
        if task.name != "data":
            found, by_default = executor.resolved(found)
        if task.name == "report":
            write_atomic(given.out / "report.html", "<html>")
            return 0
        named = (word.partition("=") for word in given.inputs)
        inputs = {name: model_reference.cached(reference) or Path(reference) for name, _, reference in named}
        for name, paths in task.files.items():
            inputs |= {f"{name}{i}": Path(path) for i, path in enumerate(paths)}
        fields = recipe.pick(found, *stage_graph.fields(task.stage, found))
        stage = open_stage(
            task.stage,
            given.out,
            fields,
            inputs,
            stage_graph.EXTENDABLE.get(task.stage, ()),
            task.stage in RERUN,
            by_default,
        )
        if not stage.done:
            for name in task.outputs:
                path = given.out / name
                target = path / "model.safetensors" if name == "model" else path
                write_atomic(target, json.dumps([stage.asked["fields"], stage.asked["inputs"]]) + "\n")
            stage.finish(task.outputs)
        time.sleep(self.pause)
        return 0


@pytest.fixture
def stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "p.jsonl").write_text("{}\n")
    found = Stages()
    monkeypatch.setattr(child_process, "run_here", found)
    return found


def execute(out="r", from_stage=None, of_run=None, until=None, **values):
    found, _ = recipe.parse(VALUES | values)
    return executor.execute(found, Path(out), from_stage, of_run, until=until)


ALL = ["data", "reward", "judge", "ppo", "infer-base", "infer-tuned", "compare", "report"]


def test_a_run_does_every_stage_and_indexes_them(stages):
    execute(kl_coeff=0.2)
    assert stages.calls == ALL
    index = files.read_json(Path("r/run.json"))
    assert list(index["stages"]) == ALL
    assert all(stage["done"] for stage in index["stages"].values())
    assert index["stages"]["ppo"]["folder"] == "policy"
    assert "score.json" in index["stages"]["ppo"]["facts"]["outputs"]
    assert recipe.load(Path("r/recipe.yaml"))[0].kl_coeff == 0.2


def test_a_run_is_indexed_from_its_first_moment(stages):
    stages.fail["data"] = 4
    with pytest.raises(PreferentError, match="data failed"):
        execute()
    assert not any(stage["done"] for stage in files.read_json(Path("r/run.json"))["stages"].values())
    assert list(files.read_json(Path("r/run.json"))["stages"]) == ALL


@pytest.mark.parametrize("values", [{"preference_dataset": "missing.jsonl"}, {"large_model_reference": "missing/"}])
def test_what_cannot_begin_leaves_no_folder(stages, values):
    with pytest.raises(PreferentError):
        execute(**values)
    assert not Path("r").exists()


def test_what_is_done_is_not_started_again(stages):
    execute()
    stages.calls.clear()
    execute()
    assert stages.calls == ["report"]


@pytest.fixture
def hashed(stages, monkeypatch):
    """The files that are hashed, none known to this process; stages take long enough for changes to be told apart."""
    names, sha256 = [], files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: names.append(path.as_posix()) or sha256(path))
    stages.pause = TICK / 1e9 + 0.02
    time.sleep(stages.pause)
    return names


def again(hashed, **values) -> list[str]:
    """What is hashed as the run is done again by a new process."""
    files._hashed.cache_clear()
    hashed.clear()
    execute(**values)
    return list(hashed)


def test_what_is_done_is_not_hashed_again(stages, hashed):
    """What one stage reads and the next one reads too is known from the first run, the rest from the second."""
    execute()
    models = ["base/config.json", *(f"r/{name}/model/model.safetensors" for name in ("reward", "judge", "policy"))]
    assert not {Path(name).resolve() for name in again(hashed)} & {Path(name).resolve() for name in models}
    assert again(hashed) == []
    (Path("r/.digests.json")).unlink()
    assert {"r/policy/model/model.safetensors", "r/data/counts.json"} <= set(again(hashed))
    Path("r/.digests.json").write_text(Path("r/.digests.json").read_text().replace('"digests"', '"digest"'))
    assert "r/policy/model/model.safetensors" in again(hashed), "a damaged table is no table"
    assert again(hashed) == [] and stages.calls == [*ALL, *["report"] * 5]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base/weights", "input model: its content changed"),
        ("r/reward/model/model.safetensors", "was changed, damaged"),
    ],
)
def test_a_byte_changed_with_its_time_put_back_is_noticed_and_stays_noticed(stages, hashed, name, message):
    files.write_atomic(Path("base/weights"), "weights")
    execute()
    again(hashed)
    assert again(hashed) == []
    path = Path(name)
    content, before = path.read_bytes(), path.stat()
    for changed in (bytes([content[0] ^ 1]) + content[1:], content):
        path.write_bytes(changed)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        time.sleep(stages.pause)
        after = path.stat()
        assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)
        for _ in range(2 if changed != content else 0):
            with pytest.raises(PreferentError, match=message):
                again(hashed)
    stages.calls.clear()
    again(hashed)
    assert stages.calls == ["report"], "put back, it is what it was"


def test_a_copied_run_is_hashed_once(stages, hashed):
    execute()
    shutil.copytree("r", "copy")
    time.sleep(stages.pause)
    assert "copy/policy/model/model.safetensors" in again(hashed, out="copy")
    assert again(hashed, out="copy") == []


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub's cache with a Llama 2 at the tag v1 and at main, and no network."""
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def download(*words, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub/models--meta-llama--Llama-2-7b-hf"
    for name in ("v1", "main"):
        files.write_atomic(folder / "refs" / name, COMMIT)
    files.write_atomic(folder / "snapshots" / COMMIT / "config.json", json.dumps(LLAMA))
    return folder


@pytest.mark.parametrize(
    "reference",
    ["llama-2-7b", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf@v1", f"meta-llama/Llama-2-7b-hf@{COMMIT}"],
)
def test_what_is_done_with_a_model_of_the_hub_is_not_started_again(stages, cache, capsys, reference):
    execute(large_model_reference=reference)
    stages.calls.clear()
    capsys.readouterr()
    execute(large_model_reference=reference)
    assert stages.calls == ["report"]
    assert capsys.readouterr().err.count("done already") == len(ALL) - 1
    (cache / "snapshots" / COMMIT / "config.json").write_text(json.dumps(LLAMA) + " ")
    with pytest.raises(UsageError, match="input model: its content changed"):
        execute(large_model_reference=reference)
    assert stages.calls == ["report", "reward"]


def test_a_model_that_moves_on_while_a_stage_begins_is_not_taken_for_what_it_was(stages, cache, hashed, monkeypatch):
    """The judge is made of the newer model; of the older one nothing is learnt from it."""
    newer = "f" * 40
    files.write_atomic(cache / "snapshots" / newer / "config.json", json.dumps(LLAMA) + " ")
    time.sleep(stages.pause)

    def moves(argv, cwd=None, env=None):
        files.write_atomic(cache / "refs/main", newer if argv[-1] == "r/judge" else COMMIT)
        return stages(argv)

    monkeypatch.setattr(child_process, "run_here", moves)
    execute(large_model_reference="llama-2-7b")
    stages.calls.clear()
    files.write_atomic(cache / "refs/main", newer)
    monkeypatch.setattr(child_process, "run_here", stages)
    with pytest.raises(UsageError, match="input model: its content changed"):
        execute(large_model_reference="llama-2-7b")
    files.write_atomic(cache / "refs/main", COMMIT)
    with pytest.raises(UsageError, match="input model: its content changed"):
        execute(large_model_reference="llama-2-7b")
    assert stages.calls == ["reward", "judge"]


def test_a_model_that_is_no_longer_in_the_cache_is_left_to_the_stage(stages, cache):
    execute(large_model_reference="llama-2-7b")
    stages.calls.clear()
    cache.rename(cache.with_name("gone"))
    with pytest.raises(PlatformError):
        execute(large_model_reference="llama-2-7b")
    assert stages.calls == ["reward"]


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x")])
def test_a_damaged_output_is_told_before_anything_is_made_of_it(stages, harm):
    stages.fail["judge"] = 3
    with pytest.raises(PreferentError, match="judge failed"):
        execute()
    stages.calls.clear()
    harm(Path("r/reward/model/model.safetensors"))
    with pytest.raises(DataError, match=r"r/reward/model: was changed, damaged or removed since reward made it"):
        execute()
    assert stages.calls == []


def test_a_change_downstream_starts_only_downstream(stages):
    execute()
    stages.calls.clear()
    execute(infer={"max_prompts": 7})
    assert stages.calls == ["infer-base", "infer-tuned", "compare", "report"]


def test_settings_that_change_no_result_start_nothing(stages):
    execute()
    stages.calls.clear()
    execute(reward={"micro_batch_tokens": 4096}, sampler={"rows": 64}, checkpoint_every=7)
    assert stages.calls == ["report"]


def test_the_recipe_of_a_run_shows_what_its_models_decided(stages):
    execute(ppo={"epochs": 3})
    written = yaml.safe_load(Path("r/recipe.yaml").read_text())
    assert (written["ppo"]["lora_dim"], written["ppo"]["learning_rate"]) == (0, 1e-6)
    assert written["defaults"]["ppo.lora_dim"] == 0
    assert written["ppo"]["epochs"] == 3 and "ppo.epochs" not in written["defaults"]
    fields = read_stage(Path("r/policy"))
    assert fields["fields"]["ppo.learning_rate"] == 1e-6 and "ppo.learning_rate" in fields["defaults"]
    stages.calls.clear()
    executor.execute(recipe.load(Path("r/recipe.yaml"))[0], Path("r"))
    assert stages.calls == ["report"]


def test_bad_data_are_told_before_a_model_is_looked_for(stages, monkeypatch):
    stages.fail["data"] = 4
    monkeypatch.setattr(model_reference, "parameters", lambda reference: pytest.fail("the model is looked for"))
    with pytest.raises(PreferentError, match="data failed"):
        execute()


def as_0_1_0_left_it(root: Path) -> None:
    """Put a run directory into the layout of 0.1.0: settings of the reward in section ppo, open fields null."""
    renamed = {new: old for old, new in run_schema.MOVED.items()}
    written = yaml.safe_load((root / "recipe.yaml").read_text())
    values = recipe.load(root / "recipe.yaml")[0].model_dump(mode="json")
    for new, old in renamed.items():
        section, name = new.split(".")
        values["ppo"][old.removeprefix("ppo.")] = values[section].pop(name)
    del values["compare"]["micro_batch_tokens"]
    (root / "recipe.yaml").write_text(yaml.safe_dump(values))
    for path in root.rglob("stage.json"):
        stage = read_stage(path.parent)
        fields = {
            renamed.get(key, key): None if key in written["defaults"] else value
            for key, value in stage["fields"].items()
        }
        del stage["defaults"]
        files.write_sealed(path, stage | {"schema": 1, "fields": fields})


def test_what_0_1_0_finished_is_recognised(stages):
    reward = {"clip": 2.0, "missing_eos_score": -3.0, "label_smoothing": 0.1}
    execute(reward=reward)
    as_0_1_0_left_it(Path("r"))
    assert "ppo.reward_clip" in read_stage(Path("r/policy"))["fields"]
    stages.calls.clear()
    execute(reward=reward)
    assert stages.calls == ["report"]
    stages.calls.clear()
    executor.execute(recipe.load(Path("r/recipe.yaml"))[0], Path("r"))
    assert stages.calls == ["report"]
    with pytest.raises(UsageError, match=r"reward\.clip: was 2\.0, is now 3\.0"):
        execute(reward=reward | {"clip": 3.0})
    with pytest.raises(UsageError, match=r"ppo\.learning_rate: was None, is now 0\.5"):
        execute(reward=reward, ppo={"learning_rate": 0.5})


def test_more_steps_extend_and_go_on_downstream(stages):
    execute()
    stages.calls.clear()
    execute(reinforcement_learning_train_steps=2000)
    assert stages.calls == ["ppo", "infer-tuned", "compare", "report"]


def test_another_model_under_the_same_name_is_noticed(stages):
    execute()
    Path("base/config.json").write_text(json.dumps(LLAMA, indent=1))
    stages.calls.clear()
    with pytest.raises(UsageError, match="input model: its content changed"):
        execute()
    assert stages.calls == ["reward"]


def test_changed_data_are_noticed(stages):
    execute()
    Path("p.jsonl").write_text("{ }\n")
    with pytest.raises(UsageError, match=r"input preference_dataset\.0: its content changed"):
        execute()


def test_a_moved_run_is_still_done(stages):
    execute("a/r")
    Path("a").rename("b")
    stages.calls.clear()
    execute("b/r")
    assert stages.calls == ["report"]


def test_a_failed_stage_is_named_with_its_exit_code_and_the_way_on(stages):
    stages.fail["ppo"] = 5
    with pytest.raises(PreferentError) as error:
        execute()
    assert error.value.exit_code == 5
    assert str(error.value).startswith("ppo failed (exit code 5); what is done is kept in r.")
    assert "preferent ppo --recipe r/recipe.yaml --in model=base" in str(error.value)
    done = {name: stage["done"] for name, stage in files.read_json(Path("r/run.json"))["stages"].items()}
    assert done == {name: name in ("data", "reward", "judge") for name in ALL}
    stages.fail.clear()
    stages.calls.clear()
    execute()
    assert stages.calls == ["ppo", "infer-base", "infer-tuned", "compare", "report"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_stage_stops_the_run(stages, number):
    stages.fail["reward"] = 128 + number
    with pytest.raises(Interrupted, match="stopped in reward; the same command goes on from here") as error:
        execute()
    assert error.value.exit_code == 128 + number
    assert stages.calls == ["data", "reward"]


def test_a_wish_to_leave_is_obeyed_between_stages(stages):
    with interruption.stoppable() as wish, pytest.raises(Interrupted):
        wish.signal_number = signal.SIGTERM
        execute()
    assert stages.calls == []


def test_from_a_stage_takes_over_the_earlier_ones(stages):
    execute("old")
    stages.calls.clear()
    execute("new", "ppo", Path("old"), kl_coeff=0.5)
    assert stages.calls == ["ppo", "infer-base", "infer-tuned", "compare", "report"]
    weights = [Path(name, "reward/model/model.safetensors").stat() for name in ("old", "new")]
    assert weights[0].st_ino == weights[1].st_ino
    data = [Path(name, "data/counts.json").stat() for name in ("old", "new")]
    assert data[0].st_ino != data[1].st_ino


def test_from_a_stage_again_resumes(stages):
    execute("old")
    stages.fail["ppo"] = 1
    with pytest.raises(PreferentError):
        execute("new", "ppo", Path("old"), kl_coeff=0.5)
    stages.fail.clear()
    stages.calls.clear()
    execute("new", "ppo", Path("old"), kl_coeff=0.5)
    assert stages.calls == ["ppo", "infer-base", "infer-tuned", "compare", "report"]


@pytest.mark.parametrize(
    ("stage", "first"), [("judge", "judge"), ("policy", "ppo"), ("infer", "infer-base"), ("comparison", "compare")]
)
def test_from_knows_a_stage_by_its_name_and_by_its_folder(stages, stage, first):
    execute("old")
    stages.calls.clear()
    execute("new", stage, Path("old"))
    assert stages.calls == ALL[ALL.index(first) :]


@pytest.mark.parametrize(("stage", "last"), [("data", "data"), ("policy", "ppo"), ("infer", "infer-tuned")])
def test_until_ends_after_a_stage_and_the_same_command_without_it_goes_on(stages, stage, last):
    execute(until=stage)
    assert stages.calls == ALL[: ALL.index(last) + 1]
    done = [name for name, entry in json.loads(Path("r/run.json").read_text())["stages"].items() if entry["done"]]
    assert done == stages.calls
    execute()
    assert stages.calls == ALL


def test_until_is_refused_where_there_is_no_such_stage(stages):
    with pytest.raises(UsageError, match="--until sft: no such stage; this recipe has data, reward"):
        execute(until="sft")
    assert stages.calls == [] and not Path("r").exists()


def test_from_is_refused_where_it_makes_no_sense(stages):
    execute("old")
    with pytest.raises(UsageError, match="--from sft: no such stage; this recipe has data, reward"):
        execute("new", "sft", Path("old"))
    with pytest.raises(UsageError, match="--of OLD_RUN"):
        execute("new", "ppo")
    with pytest.raises(UsageError, match="--of old: is the run directory itself; name a new one with --out"):
        execute("old", "ppo", Path("old"))


def test_a_run_directory_is_locked(stages):
    with locked(Path("r")), pytest.raises(UsageError, match="another process is working here"):
        execute()


def test_the_door_for_notebooks(stages):
    done = preferent.run(VALUES | {"project": "p"}, "r")
    files.write_jsonl(Path("r/policy/metrics.jsonl"), [{"step": 0, "reward": 1.5}])
    assert done.metrics() == [{"step": 0, "reward": 1.5}]
    assert done.predictions() == files.read_jsonl(Path("r/predictions/tuned/text.jsonl"))
    assert done.predictions("base") == files.read_jsonl(Path("r/predictions/base/text.jsonl"))
    assert done.judgments() == files.read_jsonl(Path("r/comparison/judgments.jsonl"))
    with pytest.raises(PlatformError, match=r"r/sft/metrics\.jsonl: does not exist; r contains: .*reward"):
        done.metrics("sft")


@pytest.mark.parametrize(
    ("headline", "kl", "expected"),
    [
        (None, None, "no judge compared the tuned model with the base"),
        (
            "judge",
            {"mean": 2.804},
            "an independent judge prefers the tuned model to the base in 63.0% of 400 pairs "
            "(95 % interval 58.1% to 67.6%), accuracy not measured; KL 2.80 nats",
        ),
        (
            "reward",
            None,
            "the reward model that was optimised, which is not an independent judge, prefers the tuned model to the "
            "base in 63.0% of 400 pairs (95 % interval 58.1% to 67.6%), accuracy not measured",
        ),
    ],
)
def test_the_verdict_in_a_sentence(tmp_path, headline, kl, expected):
    judges = {
        name: {"win_rate": 0.63, "interval": [0.581, 0.676], "n": 400, "independent": name == "judge"}
        | {"kind": "reward_model"}
        for name in ("judge", "reward")
    }
    sides = [{"key": "a", "name": "tuned"}, {"key": "b", "name": "base"}]
    found = {"headline": headline, "judges": judges, "kl": kl, "sides": sides}
    files.write_json(tmp_path / "comparison/metrics.json", found)
    assert Run(tmp_path).headline() == expected


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        ("people", ["tuned", "base"], "4 people prefer the tuned model to the base in 63.0% of 400 verdicts"),
        ("language_model", ["new", "old"], "it, a language model, prefers new to old in 63.0% of 400 verdicts"),
        ("reward_model", ["tuned", "old"], "an independent judge prefers tuned to old in 63.0% of 400 pairs"),
    ],
)
def test_the_sentence_says_who_judged_whom(kind, names, expected):
    judge = {"win_rate": 0.63, "interval": [0.58, 0.68], "n": 400, "independent": True, "kind": kind, "annotators": 4}
    sides = [{"key": key, "name": name} for key, name in zip("ab", names, strict=True)]
    told = verdict_sentence.verdict_sentence({"headline": "it", "judges": {"it": judge}, "kl": None, "sides": sides})
    measured = "" if kind == "people" else ", accuracy not measured"
    assert told == f"{expected} (95 % interval 58.0% to 68.0%){measured}"


def test_the_last_lines_of_a_run(tmp_path):
    judge = {"win_rate": 0.5, "interval": [0.33, 0.67], "n": 26, "prompts": 26, "independent": True, "tie": 0}
    sides = [{"key": "a", "name": "tuned"}, {"key": "b", "name": "base"}]
    found = {"headline": "judge", "judges": {"judge": judge | {"kind": "reward_model"}}, "kl": None, "sides": sides}
    found["sample_size"] = {"win_rate": 0.51, "prompts": 19604, "detectable": 0.77}
    files.write_json(tmp_path / "comparison/metrics.json", found)
    files.write_json(tmp_path / "policy/stage.json", {"schema": 2, "facts": {"best_step": 0, "steps": 30}})
    verdict, size, unchanged, doctor = Run(tmp_path).summary()
    assert verdict == Run(tmp_path).headline()
    assert "26 prompts show a rate of 77% or more" in size and size.endswith("to see one of 51% you need about 19604")
    assert unchanged == "The policy is the base: no step did better than the start."
    assert doctor == (
        "doctor: 3 findings (1 sick: never-better; 2 suspicious: verdict-open, judge-cannot-tell); "
        f"preferent doctor {tmp_path} shows them"
    )


def test_findings_of_one_name_are_counted():
    one, other = (Finding(name, SICK, "It is so.", (), "Change it.") for name in ("a", "b"))
    assert run_summary.named([one, other, one], Path("r")).startswith("doctor: 3 findings (3 sick: a × 2, b); ")
    assert str(one) == "sick, a: It is so. Change it."


def test_the_door_is_free_of_torch():
    code = "import sys, preferent, preferent.pipelines.executor; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_command_runs_with_our_streams_and_tells_its_exit_code(capfd):
    assert child_process.run_here([sys.executable, "-c", "print('hello'); raise SystemExit(7)"]) == 7
    assert capfd.readouterr().out == "hello\n"
    assert child_process.run_here([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"]) == 143


def test_a_command_gets_the_allocator_unless_the_user_chose_one(monkeypatch, capfd):
    show = [sys.executable, "-c", "import os; print(os.environ['GLIBC_TUNABLES'])"]
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    child_process.run_here(show)
    assert f"glibc.malloc.mmap_threshold={model_shape.HEAP_BELOW}" in capfd.readouterr().out
    child_process.run_here(show, env=os.environ | {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"})
    assert capfd.readouterr().out == "glibc.malloc.perturb=0\n"


def test_a_command_has_a_process_group_of_its_own(capfd):
    """So that a Ctrl-C in the terminal, which goes to a whole group, reaches it once: through us."""
    child_process.run_here([sys.executable, "-c", "import os; print(os.getpgrp() == os.getpid())"])
    assert capfd.readouterr().out == "True\n"


CHILD = """
import signal, sys, time
def count(number, frame):
    print("got", number, flush=True)
    counts.append(number)
counts = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, count)
print("ready", flush=True)
until = time.monotonic() + 10
while not counts and time.monotonic() < until:
    time.sleep(0.02)
time.sleep(0.3)
raise SystemExit(len(counts))
"""

PARENT = """
import os, sys; from preferent.pipelines.launchers import child_process
sys.exit(child_process.run_here([sys.executable, "-c", sys.argv[1]]))
"""


def parent(child: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, child], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on(number):
    process = parent(CHILD)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, number)  # as a terminal does it
    stdout, _ = process.communicate(timeout=20)
    assert stdout == f"got {int(number)}\n"
    assert process.returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process die with its parent")
def test_a_command_dies_with_us():
    child = textwrap.dedent("""
        import os, time
        print(os.getpid(), flush=True)
        time.sleep(60)
    """)
    process = parent(child)
    number = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(100):
        if not Path(f"/proc/{number}").exists() or "Z" in Path(f"/proc/{number}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the command still runs")


def labelled(folder: Path, **values: object) -> Path:
    """A finished run, as far as the next round looks at it, on which people gave two preferences and a tie."""
    (folder / "policy/model").mkdir(parents=True)
    (folder / "policy/DONE").write_text("")
    (folder / "recipe.yaml").write_text(recipe.dump(recipe.parse(RECIPE | values)[0]))
    row = {"input_text": "a", "candidate_0": "b", "candidate_1": "c"}
    files.write_jsonl(folder / "labels/train/preferences.jsonl", [row | {"choice": 0}, row | {"choice": 1}])
    files.write_jsonl(folder / "labels/train/ties.jsonl", [row | {"choice": "tie"}])
    return folder


def test_the_next_round_learns_from_old_and_new_preferences(tmp_path: Path) -> None:
    asked = recipe.parse(RECIPE)[0]
    one = labelled(tmp_path / "one")
    second = next_round.with_labels(asked, one)
    assert second.continues == (str(one),)
    assert second.preference_dataset == [
        "old.jsonl",
        f"{one}/labels/train/preferences.jsonl",
        f"{one}/labels/train/ties.jsonl",
    ]
    two = labelled(tmp_path / "two", continues=[str(one)])
    third = next_round.with_labels(asked, two)
    assert third.continues == (str(one), str(two))
    files = [f"{folder}/labels/train/{name}.jsonl" for folder in (one, two) for name in ("preferences", "ties")]
    assert third.preference_dataset == ["old.jsonl", *files]
    assert next_round.with_labels(second, two) == third, "a recipe that has the first round's labels gets them once"
    sides = {name: path for task in stage_graph.build(third) for name, path in task.inputs.items() if "side." in name}
    assert sides == {f"side.round-{i}": f"predictions/round-{i}/text.jsonl" for i in (1, 2)}


def test_without_labels_there_is_no_next_round(tmp_path: Path) -> None:
    one = labelled(tmp_path / "one")
    (one / "labels/train/preferences.jsonl").write_text("")
    with pytest.raises(PlatformError, match=r"preferences\.jsonl: no preferences to learn from.*--on train"):
        next_round.with_labels(recipe.parse(RECIPE)[0], one)
    with pytest.raises(UsageError, match="is not a run directory"):
        next_round.with_labels(recipe.parse(RECIPE)[0], tmp_path)


def test_what_people_said_is_read_once_it_is_there(tmp_path: Path) -> None:
    task = next(task for task in stage_graph.build(recipe.parse(RECIPE)[0]) if task.name == "compare")
    assert "people" not in task.at(tmp_path).inputs and "people" not in " ".join(task.command("run"))
    files.write_jsonl(tmp_path / "labels/judgments.jsonl", [])
    assert task.at(tmp_path).inputs["people"] == "labels/judgments.jsonl"
    assert "people=run/labels/judgments.jsonl" in task.at(tmp_path).command("run")
