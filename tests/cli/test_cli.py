"""The command line: help at once, errors that tell the way out, exit codes that scripts can rely on."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

from preferent.cli import arguments, main
from preferent.cli.help_endings import EXAMPLES
from preferent.errors import DataError, DivergedError, Interrupted, PlatformError, UsageError

COURSE = """
preference_dataset: preference/*.jsonl
prompt_dataset: prompt.jsonl
eval_dataset: eval.jsonl
large_model_reference: llama-2-7b
reward_model_train_steps: 1410
reinforcement_learning_train_steps: 320
reward_model_learning_rate_multiplier: 1.0
reinforcement_learning_rate_multiplier: 1.0
kl_coeff: 0.1
instruction: Summarize in less than 50 words
project: my-project
location: europe-west4
"""


def verbs(parser: argparse.ArgumentParser, name: str = "preferent") -> dict[str, argparse.ArgumentParser]:
    found = {name: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                found |= verbs(inner, f"{name} {word}")
    return found


VERBS = verbs(arguments.parser())
DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def call(monkeypatch, *words: str) -> int:
    """The exit code of `preferent WORDS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["preferent", *words])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setenv("PREFERENT_DEBUG", "")  # so that it is as before when the test is over
    monkeypatch.delenv("PREFERENT_DEBUG")
    try:
        main.main()
    except SystemExit as leave:
        return leave.code or 0
    return 0


@pytest.fixture
def course(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("preference").mkdir()
    rows = [
        {"input_text": f"post {i % 60} [summary]: ", "candidate_0": f" a{i}", "candidate_1": f" b{i}", "choice": i % 2}
        for i in range(100)
    ]
    Path("preference/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("prompt", "eval"):
        rows = [{"input_text": f"{name} {i} [summary]: "} for i in range(40)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = Path("course.yaml")
    path.write_text(COURSE)
    return path


def test_the_verbs():
    data = ("data", "data check", "data convert", "data prepare")
    people = ("doctor", "report", "try", "export", "compare", "label", "agree")
    tools = ("import", "scratch", "train-job", "completion", "env")
    stages = ("sft", "reward", "ppo", "dpo", "rejection", "infer")
    names = ("quickstart", "recipe", "recipe init", *data, "plan", "run", *people, *tools, *stages)
    assert list(VERBS) == ["preferent", *(f"preferent {name}" for name in names)]
    assert set(arguments.STAGES) <= set(names)


def test_help_lists_every_verb_in_its_group_and_an_example():
    text = VERBS["preferent"].format_help()
    lines = [line for line in text.split("Example:")[0].splitlines() if line[:2] == "  " and line[2].isalpha()]
    names = [name.split()[1] for name in VERBS if len(name.split()) == 2]
    assert [line.split()[0] for line in lines] == names
    assert text.index("Start:") < text.index("Look at a run:") < text.index("Stages, as a run calls them:")
    assert "preferent run my.yaml --dry-run" in text and "docs/index.md" in text
    for name in ("run", "plan", "train-job"):
        assert "large_model_reference: MODEL" in VERBS[f"preferent {name}"].format_help()


@pytest.mark.parametrize("name", VERBS)
def test_help_is_short_and_complete(name):
    options = [action for action in VERBS[name]._actions if not isinstance(action, argparse._SubParsersAction)]
    assert len(options) <= 40
    assert all(action.help for action in options)
    assert VERBS[name].description


@pytest.mark.parametrize(
    "name",
    [
        *("preferent", "preferent run", "preferent ppo", "preferent data check", "preferent doctor"),
        *("preferent compare", "preferent agree", "preferent label"),
    ],
)
def test_help_imports_nothing_heavy(name):
    words = name.split()[1:]
    code = f"""
import sys
sys.argv = ["preferent", *{words!r}, "--help"]
from preferent.cli.main import main
try:
    main()
except SystemExit as leave:
    assert not leave.code
heavy = {{"torch", "transformers", "pydantic", "numpy", "yaml", "rich", "scipy"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: " + name)


@pytest.mark.parametrize("name", [name for name in VERBS if name != "preferent"])
def test_the_help_of_a_verb_ends_with_examples_that_are_right_and_a_guide_that_is_there(name):
    verb = name.removeprefix("preferent ")
    guide, *commands = EXAMPLES[verb]
    text = VERBS[name].format_help()
    assert (DOCS / f"{guide}.md").exists() and f"Guide: docs/{guide}.md" in text
    for command in commands:
        assert f"  {command}\n" in text
        words = shlex.split(command.replace("\\\n", " "))
        if words[0] != "eval":
            assert words[:1] + verb.split() == words[: 1 + len(verb.split())]
            assert hasattr(arguments.parser().parse_args(words[1:]), "do")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("preferent re", {"recipe", "report", "reward", "rejection"}),
        ("preferent data c", {"check", "convert"}),
        ("preferent recipe init --fr", {"--from"}),
        ("preferent run my.yaml --dry", {"--dry-run"}),
        ("preferent run my.y", set()),
    ],
)
def test_the_shell_completes_verbs_and_options(monkeypatch, capsys, line, expected):
    assert call(monkeypatch, "completion") == 0
    words = shlex.split(line)
    question = f"""
COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _preferent; echo "${{COMPREPLY[@]}}"
"""
    argv = ["bash", "-uc", "ZSH_VERSION=;" + capsys.readouterr().out + question]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (set(done.stdout.split()), done.stderr) == (expected, "")


def test_python_dash_m_is_the_same():
    done = subprocess.run([sys.executable, "-m", "preferent", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == "0.2.0\n"


def test_without_a_verb_there_is_help(monkeypatch, capsys):
    assert call(monkeypatch) == 0
    assert "usage: preferent" in capsys.readouterr().out


def test_the_course_runs_dry_without_a_hub(course):
    """Offline: no name of a host can be resolved in this process."""
    code = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("the network was asked")
socket.getaddrinfo = socket.socket.connect = refuse
from preferent.cli.main import main
main()
assert "torch" not in sys.modules and "transformers" not in sys.modules and "huggingface_hub" not in sys.modules
"""
    words = ["run", str(course), "--dry-run", "--verbose"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for expected in (
        "llama-2-7b = meta-llama/Llama-2-7b-hf",
        "preference      100 rows (gcpc), 100 kept",
        "ppo      320 steps of 64 = 512.0 epochs of 40 prompts",
        "infer    20 test prompts each: base, tuned (greedy)",
        "preferent ppo --recipe runs/course/recipe.yaml --in model=llama-2-7b",
        "ignored: means something only on Google Cloud\n  project\n  location",
        "whether meta-llama/Llama-2-7b-hf is available on the hub",
        "token lengths",
    ):
        assert expected in done.stdout
    assert not Path("runs").exists()


def test_the_news_of_a_dry_run_is_not_drowned_in_commands(course, monkeypatch, capsys):
    """The commands of the stages come last, and only where they are asked for."""
    for words in (["run", "course.yaml", "--dry-run"], ["plan", "course.yaml"]):
        assert call(monkeypatch, *words) == 0
        short = capsys.readouterr().out
        assert call(monkeypatch, *words, "--verbose") == 0
        whole = capsys.readouterr().out
        assert whole.startswith(short.rstrip("\n")) and "--recipe" not in short
        commands = whole.removeprefix(short.rstrip("\n")).strip().splitlines()
        assert commands[0] == "commands" and all(line.startswith("  preferent ") for line in commands[1:])


def test_a_dry_run_tells_the_rest(course, monkeypatch, capsys):
    Path("texts.jsonl").write_text('{"text": "once"}\n{"text": "twice"}\n')
    Path("preference/config.json").write_text("{}")
    words = ["run", "course.yaml", "--dry-run", "--out", "elsewhere", "--set", "sft={dataset: texts.jsonl}"]
    words += ["--set", "kl_coeff=0", "--set", "reward.sources=module:function"]
    words += ["--set", "large_model_reference=preference"]
    assert call(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert "run directory elsewhere" in out
    assert "to tune         preference\n" in out
    assert "reward          the function module:function" in out
    assert "reference       none: kl_coeff is 0" in out
    assert "sft      1,000 steps of 64 sequences packed from 2 texts" in out
    assert "base, tuned, original" in out
    assert "from the hub" not in out


def test_a_dry_run_fails_where_the_run_would(course, monkeypatch, capsys):
    assert call(monkeypatch, "run", "course.yaml", "--dry-run", "--set", "prompt_dataset=nothing.jsonl") == 3
    assert "nothing.jsonl" in capsys.readouterr().err
    Path("prompt.jsonl").write_text('{"input_text": ""}\n')
    assert call(monkeypatch, "run", "course.yaml", "--dry-run") == 4
    assert "prompt.jsonl" in capsys.readouterr().err


def stage(monkeypatch, error: BaseException | None = None) -> list:
    """A stage that notes what it was called with, and fails as told."""
    calls = []

    def main(*given):
        calls.append(given)
        if error is not None:
            raise error

    module = types.ModuleType("preferent.training.ppo")
    module.main = main
    monkeypatch.setitem(sys.modules, "preferent.training.ppo", module)
    return calls


PPO = ("ppo", "--recipe", "course.yaml", "--in", "model=m", "--in", "train=t", "--in", "validation=v", "--out", "o")


def test_a_stage_gets_recipe_inputs_and_folder(course, monkeypatch):
    calls = stage(monkeypatch)
    assert call(monkeypatch, *PPO, "--set", "ppo.epochs=2") == 0
    recipe, inputs, out = calls[0]
    assert recipe.ppo.epochs == 2
    assert inputs == {"model": Path("m"), "train": Path("t"), "validation": Path("v")}
    assert out == Path("o")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--in", "modle=m"], "--in modle=m: ppo does not read 'modle'; it reads model, train, validation, reward"),
        (["--in", "model"], "--in model: write it as NAME=PATH"),
        (["--in", "model=m"], "ppo: --in train=PATH is missing; it reads model, train, validation, reward"),
    ],
)
def test_inputs_are_checked_by_name(course, monkeypatch, capsys, words, expected):
    assert call(monkeypatch, "ppo", "--recipe", "course.yaml", "--out", "o", *words) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("why"), 2),
        (PlatformError("why"), 3),
        (DataError("why"), 4),
        (DivergedError("why"), 5),
        (Interrupted("why", 15), 143),
        (OSError(28, "No space left on device", "f"), 3),
        (MemoryError(), 3),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate"), 3),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), 3),
    ],
)
def test_a_foreseen_error_is_a_message_and_its_exit_code(course, monkeypatch, capsys, error, code):
    stage(monkeypatch, error)
    assert call(monkeypatch, *PPO) == code
    shown = capsys.readouterr().err
    assert shown.startswith("preferent: ")
    assert "Traceback" not in shown


def test_debug_shows_the_traceback(course, monkeypatch, capsys):
    stage(monkeypatch, DataError("why"))
    assert call(monkeypatch, "--debug", *PPO) == 4
    assert "Traceback" in capsys.readouterr().err
    assert os.environ["PREFERENT_DEBUG"] == "1"


FAULTY = """
import sys, types
module = types.ModuleType("preferent.training.ppo")
def main(*given): raise KeyError("surprise")
module.main = main
sys.modules["preferent.training.ppo"] = module
from preferent.cli.main import main
main()
"""


def test_an_unforeseen_error_says_that_it_is_a_bug(course):
    done = subprocess.run([sys.executable, "-c", FAULTY, *PPO], capture_output=True, text=True)
    assert done.returncode == 1
    assert "unexpected KeyError: 'surprise'\nThis is a bug in preferent." in done.stderr
    assert "preferent --debug ppo --recipe course.yaml" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([sys.executable, "-c", FAULTY, "--debug", *PPO], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    "words", [["rum"], ["run"], ["ppo", "--out", "o"], ["scratch", "--layers", "two"], ["--nonsense"]]
)
def test_wrong_usage_exits_with_2(monkeypatch, capsys, words):
    assert call(monkeypatch, *words) == 2
    assert "usage: preferent" in capsys.readouterr().err


def unread(*words: str, **more: str) -> tuple[int, str]:
    """The exit code of `preferent WORDS`, of whose output nobody reads a byte, and what it writes to stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "preferent", *words]
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, env=os.environ | more)
    os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        *(["--help"], ["--version"], ["run", "--help"], ["env"], ["data", "check", "prompt.jsonl"]),
        *(["run", "course.yaml", "--dry-run"], ["plan", "course.yaml"], ["data", "check", "bad.jsonl"]),
    ],
)
def test_a_closed_pipe_ends_quietly(course, words):
    Path("bad.jsonl").write_text('{"input_text": ""}\n' * 2000)
    code, said = unread(*words)
    assert code == 0
    assert "Broken" not in said and "bug" not in said
    assert said == "" or "epochs of" in said


def test_a_run_knows_that_its_stage_left(course, tmp_path):
    assert unread("env", PREFERENT_ERROR_FILE=str(tmp_path / "error"))[0] == 141


def test_another_broken_pipe_is_an_error(course, monkeypatch):
    stage(monkeypatch, BrokenPipeError(32, "a connection"))
    with pytest.raises(BrokenPipeError, match="a connection"):
        call(monkeypatch, *PPO)


def test_a_closed_pipe_behind_rich_ends_quietly():
    code = """
import sys
from preferent.cli import actions, arguments, main
def show(arguments):
    from rich.console import Console
    for _ in range(3):
        Console().print("x" * 100)
actions.do_env = show
arguments.VERBS["env"] = (show, *arguments.VERBS["env"][1:])
sys.argv = ["preferent", "env"]
main.main()
"""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_report_of_a_run_is_named_like_a_run(course, monkeypatch, capsys):
    from preferent.config import recipe

    Path("r").mkdir()
    Path("r/recipe.yaml").write_text(recipe.dump(recipe.load(course)[0]))
    assert call(monkeypatch, "report", "r") == 0
    assert Path("r/report.html").exists() and "r/report.html: written" in capsys.readouterr().out
    assert call(monkeypatch, "report", "r", "--out", "other.html") == 0 and Path("other.html").exists()
    for words, expected in (
        (["report", "preference"], "preference: is not a run directory"),
        (["report", "nowhere"], "nowhere: no such run directory"),
        (["report"], "report: name a run"),
        (["report", "r", "--in", "run=r"], "--in is for the stage alone"),
    ):
        assert call(monkeypatch, *words) == 2
        assert expected in capsys.readouterr().err


def test_a_wrong_recipe_exits_with_2_or_3(course, monkeypatch, capsys):
    assert call(monkeypatch, "run", "nothing.yaml") == 3
    assert "`preferent recipe init` writes one" in capsys.readouterr().err
    course.write_text("kl_coef: 1\n")
    assert call(monkeypatch, "run", "course.yaml") == 2
    assert "course.yaml: unknown key 'kl_coef'; did you mean 'kl_coeff'?" in capsys.readouterr().err


def test_google_cloud_keys_are_named(course, monkeypatch, capsys):
    from preferent import files
    from preferent.pipelines import executor

    seen = []

    def execute(recipe, out, from_stage, of_run, launch, until):
        seen.append((out, from_stage, of_run))
        judge = {
            "win_rate": 0.6,
            "interval": [0.5, 0.7],
            "n": 10,
            "prompts": 10,
            "independent": True,
            "kind": "reward_model",
        }
        sides = [{"key": "a", "name": "tuned"}, {"key": "b", "name": "base"}]
        found = {"headline": "judge", "judges": {"judge": judge}, "kl": None, "sides": sides}
        files.write_json(out / "comparison/metrics.json", found)

    monkeypatch.setattr(executor, "execute", execute)
    assert call(monkeypatch, "run", "course.yaml", "--from", "ppo", "--of", "old") == 0
    assert seen == [(Path("runs/course"), "ppo", Path("old"))]
    shown = capsys.readouterr()
    assert "ignored, they mean something only on Google Cloud: project, location" in shown.err
    assert "an independent judge prefers the tuned model" in shown.out


def test_data_is_checked_and_converted(course, monkeypatch, capsys):
    assert call(monkeypatch, "data", "check", "preference/a.jsonl", "prompt.jsonl") == 0
    assert "preference/a.jsonl: preference (gcpc), 100 rows, 100 usable" in capsys.readouterr().out
    assert call(monkeypatch, "data", "convert", "preference/a.jsonl", "--to", "trl", "--out", "trl.jsonl") == 0
    assert "trl.jsonl: 100 of 100 rows written" in capsys.readouterr().out
    first = json.loads(Path("trl.jsonl").read_text().split("\n")[1])
    assert first == {"prompt": "post 1 [summary]: ", "chosen": " b1", "rejected": " a1"}
    with open("preference/a.jsonl", "a") as file:
        file.write("nonsense\n")
    assert call(monkeypatch, "data", "check", "preference/a.jsonl") == 4
    shown = capsys.readouterr()
    assert "preference/a.jsonl:101: " in shown.out
    assert "1 of 101 rows cannot be used" in shown.err
    assert call(monkeypatch, "data", "convert", "preference/a.jsonl", "--to", "trl", "--out", "trl.jsonl") == 0
    shown = capsys.readouterr()
    assert "trl.jsonl: 100 of 101 rows written, 1 bad rows left out" in shown.out
    assert "preference/a.jsonl:101: " in shown.err
    assert call(monkeypatch, "data", "check", "course.yaml") == 2
    assert "course.yaml is a recipe: name its files of data here, or count them by: preferent plan" in (
        capsys.readouterr().err
    )


def test_data_is_prepared(course, monkeypatch):
    assert call(monkeypatch, "data", "prepare", "--recipe", "course.yaml", "--out", "r/data") == 0
    assert yaml.safe_load(Path("r/data/counts.json").read_text())["parts"]["prompt"]["train"] == 40
