"""The usual mistakes: one clear message with place and way out, an exit code to rely on, no traceback, nothing lost.

Exit codes: 2 the command or the recipe, 3 the surroundings, 4 the data, 130 and 143 a signal. Everything goes through
the command line, in this process: stages too, but where signals are the matter.
"""

import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SENTENCES

from preferent import files
from preferent.cli.main import main as command_line
from preferent.config import defaults, recipe
from preferent.pipelines.launchers import child_process
from preferent.runs import progress, stages

ROWS = 40
RECIPE = """
large_model_reference: model
preference_dataset: pairs.jsonl
prompt_sequence_length: 24
target_sequence_length: 8
precision: fp32
device: cpu
threads: 1
reward_model_train_steps: 2
reinforcement_learning_train_steps: 2
data: {validation_share: 0.1, test_share: 0.1}
reward: {normalize_prompts: 2, batch_size: 4}
ppo: {batch_size: 4, epochs: 1, validation_prompts: 2}
"""

Row = dict[str, Any] | bytes
Preferent = Callable[..., tuple[int, str]]


def pairs(count: int = ROWS) -> list[dict[str, Any]]:
    words = [word for sentence in SENTENCES for word in sentence.split()]
    return [
        {
            "input_text": " ".join(words[i : i + 4]),
            "candidate_0": f" {words[i]} a",
            "candidate_1": " be",
            "choice": i % 2,
        }
        for i in range(count)
    ]


def write(name: str, rows: list[Row], end: bytes = b"\n") -> None:
    Path(name).write_bytes(
        b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + end for row in rows)
    )


def main(*words: str) -> int:
    """The exit code of `preferent WORDS` in this process; an error that nobody foresaw is raised."""
    before = sys.argv, sys.excepthook
    sys.argv = ["preferent", *words]
    try:
        command_line()
    except SystemExit as leave:
        assert isinstance(leave.code, int)
        return leave.code
    finally:
        sys.argv, sys.excepthook = before
    return 0


def here(argv: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> int:
    """Stands in for the process of a stage."""
    return main(*argv[3:])


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data, a recipe, and a run that is done."""
    folder = tmp_path_factory.mktemp("mistakes")
    shutil.copytree(tiny, folder / "model", ignore=shutil.ignore_patterns("stage.json", "DONE", ".*"))
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(child_process, "run_here", here)
        write("pairs.jsonl", [*pairs()])
        assert main("run", "recipe.yaml", "--out", "R") == 0
    return folder


@pytest.fixture(autouse=True)
def work(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of it to make mistakes in."""
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(child_process, "run_here", here)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def preferent(capfd: pytest.CaptureFixture[str]) -> Preferent:
    """A function that gives the exit code of `preferent WORDS` and what it said, which is never a traceback."""

    def call(*words: str) -> tuple[int, str]:
        code = main(*words)
        said = "".join(capfd.readouterr())
        assert "Traceback" not in said
        assert "bug in preferent" not in said
        return code, said

    return call


def content(folder: str) -> dict[str, str]:
    """What a run directory holds: a hash of every file but locks and the index."""
    files = sorted(
        path for path in Path(folder).rglob("*") if path.is_file() and path.name not in (".lock", "run.json")
    )
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def model_with(name: str, file: str = "", **changes: Any) -> Path:
    """A copy of the model in which the values of a JSON file are others (None: gone)."""
    folder = Path(name)
    shutil.copytree("model", folder)
    if file:
        values = files.read_json(folder / file) | changes
        files.write_json(folder / file, {key: value for key, value in values.items() if value is not None})
    return folder


# Files


def test_a_missing_file_is_named_with_where_it_was_looked_for(preferent: Preferent) -> None:
    for words in (["data", "check", "none.jsonl"], ["run", "recipe.yaml", "--set", "preference_dataset=none.jsonl"]):
        code, said = preferent(*words)
        assert code == 3
        assert f"none.jsonl: no such file (looked in {Path.cwd()}); give a path" in said


@pytest.mark.parametrize("data", [b"", b"\n  \r\n\n"])
def test_an_empty_file_says_what_a_row_is(preferent: Preferent, data: bytes) -> None:
    Path("empty.jsonl").write_bytes(data)
    for words in (["data", "check", "empty.jsonl"], ["run", "recipe.yaml", "--set", "preference_dataset=empty.jsonl"]):
        code, said = preferent(*words)
        assert code == 4
        assert "empty.jsonl: no rows; write one JSON object per line" in said


def test_a_directory_for_a_file_names_the_files_in_it(preferent: Preferent) -> None:
    for words in (["data", "check", "model"], ["run", "recipe.yaml", "--set", "preference_dataset=model"]):
        code, said = preferent(*words)
        assert code == 2
        assert "model: is a directory; name the files in it, for example model/*.jsonl" in said


GOOD = pairs(1)[0]
BAD_ROWS: dict[str, tuple[Row, str]] = {
    "malformed": (
        b'{"input_text": "x",',
        "malformed JSON: Expecting property name enclosed in double quotes at column 20",
    ),
    "no candidate_1": (
        {key: value for key, value in GOOD.items() if key != "candidate_1"},
        "missing key: candidate_1 (the row has: candidate_0, choice, input_text)",
    ),
    **{
        f"choice {choice}": (GOOD | {"choice": choice}, f'bad choice: {choice!r}; it is 0, 1 or "tie"')
        for choice in (2, "A", None, 0.5)
    },
    "equal candidates": (GOOD | {"candidate_1": GOOD["candidate_0"]}, "equal candidates: both are ' The a'"),
    "bad UTF-8": (b'{"input_text": "\xff"}', "not UTF-8: byte 0xff at position 16; save the file as UTF-8"),
    "NUL bytes": (b'{"input_text": "\0"}', "NUL character: a byte 0x00 at position 16; if it is UTF-16, save it"),
    "NUL escaped": (b'{"input_text": "\\u0000"}', "NUL character: input_text holds U+0000"),
    "array": (b"[1, 2]", "not an object: a JSON array, where each line should be one object"),
    "ten malformed megabytes": (GOOD | {"choice": "x" * 10_000_000}, "bad choice: 'xxx"),
    "a key of ten megabytes": ({"candidate_0": "a", "k" * 10_000_000: 1}, "missing key: candidate_1"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(preferent: Preferent, name: str) -> None:
    bad, reason = BAD_ROWS[name]
    rows: list[Row] = [*pairs()]
    rows[16] = bad
    write("bad.jsonl", rows)
    code, said = preferent("data", "check", "bad.jsonl")
    assert code == 4
    assert f"bad.jsonl:17: {reason}" in said
    assert "fix them, or let a run drop some: --set data.max_dropped=SHARE" in said
    code, said = preferent("run", "recipe.yaml", "--out", "new", "--set", "preference_dataset=bad.jsonl")
    assert code == 4
    assert f"bad.jsonl:17: {reason}" in said
    assert len(said) < 3000
    assert not Path("new/data/DONE").exists()


def test_a_mistake_in_every_row_is_still_one_of_preferences(preferent: Preferent) -> None:
    write("bad.jsonl", [{key: value for key, value in row.items() if key != "candidate_1"} for row in pairs()])
    code, said = preferent("data", "check", "bad.jsonl")
    assert code == 4
    assert "bad.jsonl: preference (gcpc), 40 rows, 0 usable" in said


def test_an_empty_prompt_is_named(preferent: Preferent) -> None:
    write("prompts.jsonl", [{"input_text": "Q"}, {"input_text": " \n"}])
    code, said = preferent("data", "check", "prompts.jsonl")
    assert code == 4
    assert "prompts.jsonl:2: empty prompt: there is nothing to answer" in said
    write("empty.jsonl", [row | {"input_text": ""} for row in pairs()])
    code, said = preferent("run", "recipe.yaml", "--out", "new", "--set", "preference_dataset=empty.jsonl")
    assert code == 4
    assert "no prompt is left to train on: the preferences have none (input_text is empty)" in said
    assert "name a prompt_dataset" in said


def test_a_line_of_ten_megabytes_a_byte_order_mark_and_crlf_are_accepted(preferent: Preferent) -> None:
    write("rows.jsonl", [b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), *pairs()[1:]], end=b"\r\n")
    with open("rows.jsonl", "ab") as file:
        file.write(json.dumps(GOOD | {"input_text": "long " * 2_000_000}).encode())
    code, said = preferent("data", "check", "rows.jsonl")
    assert code == 0
    assert "rows.jsonl: preference (gcpc), 41 rows, 41 usable" in said
    assert preferent("data", "prepare", "--recipe", "recipe.yaml", "--set", "preference_dataset=rows.jsonl",
                     "--out", "data")[0] == 0  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--kind", "preferences"], "kind preferences: unknown; rows hold preference, prompt, demonstration, text"),
        (["--format", "csv"], "format csv: unknown; rows are read as auto, gcpc, trl, hh, openai"),
    ],
)
def test_an_unknown_kind_or_format_names_those_there_are(preferent: Preferent, words: list[str], expected: str) -> None:
    code, said = preferent("data", "check", "pairs.jsonl", *words)
    assert (code, expected in said) == (2, True)


def test_a_prompt_that_is_too_long_is_cut_and_counted(preferent: Preferent) -> None:
    write("long.jsonl", [row | {"input_text": row["input_text"] + " and so on" * 40} for row in pairs()])
    code, said = preferent("data", "check", "long.jsonl", "--model", "model", "--prompt-sequence-length", "24")
    assert code == 0
    assert "40 (100.0%) are cut at 24" in said


def test_prompts_longer_than_the_model_are_refused(preferent: Preferent) -> None:
    for words in (["run", "recipe.yaml", "--out", "new"], ["plan", "recipe.yaml"]):
        code, said = preferent(*words, "--set", "prompt_sequence_length=1000")
        assert code == 2
        assert "prompt_sequence_length + target_sequence_length: 1008 tokens, but model reads 128" in said
        assert "lower one of them" in said
    assert not Path("new").exists()


def test_so_are_those_that_the_reward_model_cannot_read(preferent: Preferent) -> None:
    short = model_with("short", "config.json", max_position_embeddings=16)
    code, said = preferent("run", "recipe.yaml", "--dry-run", "--set", f"reward_model_reference={short}")
    assert code == 2
    assert "tokens, but short reads 16; lower one of them" in said


# The recipe


@pytest.mark.parametrize("key", sorted(recipe.names()))
def test_an_unknown_key_at_any_depth_names_the_nearest(preferent: Preferent, key: str) -> None:
    wrong = key[:-2] + key[-1]
    code, said = preferent("run", "recipe.yaml", "--set", "sft.dataset=pairs.jsonl", "--set", f"{wrong}=1")
    assert code == 2
    assert f"recipe.yaml: unknown key '{wrong}'; did you mean '{key}'?" in said
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("ppo.epochs=many", "ppo.epochs: Input should be a valid integer"),
        ("kl_coeff=[1]", "kl_coeff: Input should be a valid number"),
        ("instruction=5", "instruction: Input should be a valid string"),
        ("ppo=[1]", "ppo: Input should be a valid dictionary"),
        ("reward_model_train_steps=-1", "reward_model_train_steps: Input should be greater than or equal to 1"),
        ("reinforcement_learning_train_steps=0", "reinforcement_learning_train_steps: Input should be greater"),
        ("kl_coeff=.inf", "kl_coeff: Input should be a finite number (given: inf)"),
        ("ppo.learning_rate=.nan", "ppo.learning_rate: Input should be a finite number (given: nan)"),
        ("ppo=[1", "--set ppo=[1: not YAML: expected "),
    ],
)
def test_a_wrong_value_names_its_field_and_what_was_given(preferent: Preferent, setting: str, expected: str) -> None:
    code, said = preferent("run", "recipe.yaml", "--out", "new", "--set", setting)
    assert (code, expected in said) == (2, True), said
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("- a\n- b\n", 2, "wrong.yaml: a recipe is a mapping of keys to values, as in kl_coeff: 0.1; this is a list"),
        ("", 2, "wrong.yaml: a recipe is a mapping of keys to values, as in kl_coeff: 0.1; this is nothing"),
        ("a: 1\nb: [1\n", 2, "wrong.yaml:3: not YAML"),
        ("a: \udcff\n", 3, "wrong.yaml: cannot be read as a recipe"),
    ],
)
def test_what_is_no_recipe_is_named(preferent: Preferent, text: str, code: int, expected: str) -> None:
    Path("wrong.yaml").write_bytes(text.encode(errors="surrogateescape"))
    assert preferent("run", "wrong.yaml")[0] == code
    assert expected in preferent("run", "wrong.yaml", "--set", "ppo.epochs=2")[1]


def test_a_word_that_is_too_long_for_a_name_is_refused(preferent: Preferent) -> None:
    for words in (("agree", "x" * 300), ("compare", "x" * 300, "y"), ("run", "x" * 300), ("doctor", "x" * 300)):
        code, said = preferent(*words)
        assert code in (2, 3), said
        assert "bug in preferent" not in said


# Models


def renamed(old: str, new: str) -> Callable[[], Path]:
    def make() -> Path:
        folder = model_with("wrong")
        (folder / old).rename(folder / new)
        return folder

    return make


def cut() -> Path:
    weights = model_with("wrong") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return weights.parent


def without_eos() -> Path:
    folder = model_with("wrong", "tokenizer_config.json", eos_token=None)
    for name in ("config.json", "generation_config.json"):
        files.write_json(folder / name, files.read_json(folder / name) | {"eos_token_id": None})
    return folder


def adapter() -> Path:
    folder = model_with("wrong")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    files.write_json(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "../model"})
    return folder


def is_now(**changes: Any) -> Callable[[], Path]:
    return lambda: model_with("wrong", "config.json", **changes)


BAD_MODELS: dict[str, tuple[Callable[[], Path], int, str]] = {
    "no such folder": (lambda: Path("none"), 3, "none: no such folder, and no hub id (OWNER/NAME) either"),
    "no model": (
        lambda: Path("R"),
        3,
        "R: is no model: there is no config.json in it; give a folder in the Hugging Face",
    ),
    "a file": (lambda: Path("pairs.jsonl"), 3, "pairs.jsonl: is no model"),
    "a reward model": (lambda: Path("R/reward/model"), 2, "is a LlamaForSequenceClassification, not a causal language"),
    "an encoder-decoder": (
        is_now(architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True),
        2,
        "is a T5ForConditionalGeneration, not a causal language model; large_model_reference wants one that",
    ),
    "no EOS": (without_eos, 3, 'the tokenizer names no end-of-sequence token, so no answer could end; set "eos_token"'),
    "no tokenizer": (renamed("tokenizer.json", "other.json"), 3, "holds no tokenizer.json; copy the tokenizer's files"),
    "only a pickle": (
        renamed("model.safetensors", "pytorch_model.bin"),
        3,
        "has no .safetensors weights; pickled ones are not read, since they can run code. Convert them once",
    ),
    "cut weights": (cut, 3, "wrong/model.safetensors: cannot be read: Error while deserializing header"),
    "other shapes": (
        is_now(intermediate_size=65),
        3,
        "weights are missing or have another shape than config.json says",
    ),
    "another size": (is_now(hidden_size=128), 3, "wrong: config.json describes a model of"),
    "an unknown kind": (
        is_now(model_type="nonsense"),
        3,
        "wrong/config.json: cannot be loaded: The checkpoint",
    ),
    "an adapter": (adapter, 2, "is an adapter, but large_model_reference wants a full model; merge it into its base"),
    "quantised": (is_now(quantization_config={"quant_method": "gptq"}), 3, "its weights are quantised"),
    "recurrent": (is_now(model_type="mamba"), 3, "is a mamba model, with layers that keep a recurrent state"),
    "more tokens than rows": (
        is_now(vocab_size=356),
        3,
        "its tokenizer has 358 tokens, but its embeddings have 356 rows",
    ),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_what_is_no_model_to_tune_is_refused_before_anything_is_trained(preferent: Preferent, name: str) -> None:
    make, code, expected = BAD_MODELS[name]
    given = make()
    assert (result := preferent("run", "recipe.yaml", "--out", "new", "--set", f"large_model_reference={given}"))[
        0
    ] == code
    assert expected in result[1]
    assert not [path for path in Path(".").glob("new/*/metrics.jsonl") if path.read_text()]


@pytest.mark.parametrize("error", [ConnectionError("no route"), type("ReadTimeout", (Exception,), {})("slow")])
def test_without_a_network_a_hub_id_says_what_to_do(
    preferent: Preferent, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def download(*words: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(importlib.import_module("huggingface_hub"), "snapshot_download", download)
    code, said = preferent("run", "recipe.yaml", "--out", "new", "--set", "large_model_reference=owner/name")
    assert code == 3
    assert f"owner/name: the hub is out of reach ({type(error).__name__}) and the model is not in the cache" in said
    assert f"nor is there a folder {Path('owner/name').absolute()}" in said
    assert "download it elsewhere and give its folder as large_model_reference" in said
    assert Path("new/data/DONE").exists()


def test_a_missing_extra_prints_its_install_line(preferent: Preferent, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("rows.parquet").write_bytes(b"PAR1")
    for name in ("datasets", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    for path, package in (("rows.parquet", "pyarrow"), ("hf://owner/name", "datasets")):
        code, said = preferent("data", "check", path)
        assert code == 3
        assert f"preferent: {path}: " in said
        assert f"pip install {package}\n" in said


# Run directories


def test_the_run_directory_of_another_recipe_stays_as_it_is(preferent: Preferent) -> None:
    before = content("R")
    code, said = preferent("run", "recipe.yaml", "--out", "R", "--set", "reward.batch_size=5", "--set", "kl_coeff=0.3")
    assert code == 2
    assert "R/reward: was made from something else:\n  reward.batch_size: was 4, is now 5\n" in said
    assert "preferent run RECIPE --out NEW_RUN --from reward --of R" in said
    assert content("R") == before
    assert preferent("run", "recipe.yaml", "--out", "R")[0] == 0


@pytest.mark.parametrize("file", ["reward/stage.json", "policy/score.json", "policy/metrics.jsonl"])
def test_a_damaged_file_of_a_run_is_named(preferent: Preferent, file: str) -> None:
    Path("R/policy/DONE").unlink()
    path = Path("R", file)
    path.write_text("{\n" + path.read_text())
    code, said = preferent("run", "recipe.yaml", "--out", "R")
    assert code == 4
    assert f"{path}:1: not JSON" in said or f"{path}: damaged or changed by hand" in said


@pytest.fixture
def room() -> Iterator[Callable[[int], None]]:
    """A function that gives every file a largest size: a write beyond it fails as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (200, "new/run.json: cannot be written ("),
        (3000, "new/data/preference/train.jsonl: cannot be written ("),
        (20000, "new/reward/best/step-000002: the checkpoint cannot be written: "),
    ],
)
def test_a_full_disk_is_told_and_the_same_command_goes_on(
    preferent: Preferent, room: Callable[[int], None], size: int, expected: str
) -> None:
    room(size)
    code, said = preferent("run", "recipe.yaml", "--out", "new")
    room(resource.RLIM_INFINITY)
    assert code == 3
    assert expected in said
    assert "make room" in said
    assert not [path for path in Path("new").rglob("*.tmp*") if path.exists()]
    assert preferent("run", "recipe.yaml", "--out", "new")[0] == 0
    for file in ("reward/metrics.jsonl", "policy/metrics.jsonl", "predictions/tuned/text.jsonl"):
        assert Path("new", file).read_bytes() == Path("R", file).read_bytes()


@pytest.mark.parametrize("words", [["run", "recipe.yaml"], ["scratch", "--text", "recipe.yaml"]])
@pytest.mark.parametrize("out", ["pairs.jsonl", "pairs.jsonl/below"])
def test_a_directory_that_cannot_be_made_is_named(preferent: Preferent, words: list[str], out: str) -> None:
    code, said = preferent(*words, "--out", out)
    assert code == 3
    assert f"{out}: cannot be used as a run directory: " in said
    assert "use another --out" in said


@pytest.mark.parametrize(
    "words",
    [
        ["data", "convert", "pairs.jsonl", "--out", "pairs.jsonl/trl.jsonl"],
        ["report", "--recipe", "recipe.yaml", "--in", "run=R", "--out", "pairs.jsonl/report.html"],
    ],
)
def test_a_file_that_cannot_be_written_is_named(preferent: Preferent, words: list[str]) -> None:
    code, said = preferent(*words)
    assert code == 3
    assert f"{words[-1]}: cannot be written (" in said
    assert "choose another place" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_directory_is_named(preferent: Preferent) -> None:
    Path("closed").mkdir(mode=0o500)
    code, said = preferent("run", "recipe.yaml", "--out", "closed/new")
    assert code == 3
    assert "closed/new: cannot be used as a run directory: Permission denied; use another --out" in said


def test_two_runs_in_one_directory_do_not_meet(preferent: Preferent) -> None:
    before = content("R")
    with stages.locked(Path("R"), "run"):
        code, said = preferent("run", "recipe.yaml", "--out", "R")
    assert code == 2
    assert "R: another process is working here; wait for it, or use another --out" in said
    assert content("R") == before


# Memory, disk and permissions, met in the middle of a stage


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the policy's stage meet an error while it learns."""

    def learn(*words: Any) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("preferent.training.ppo"), "learn", learn)


STAGE = ["--in", "model=model", "--in", "reward=R/reward/model", "--in", "train=R/data/prompt/train.jsonl"]
STAGE += ["--in", "validation=R/data/prompt/validation.jsonl", "--out", "policy"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_names_three_smaller_settings(
    preferent: Preferent, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    failing(monkeypatch, error)
    code, said = preferent("ppo", "--recipe", "recipe.yaml", *STAGE)
    assert code == 3
    assert said.rpartition("preferent: ")[2].startswith("out of memory")
    assert smaller_settings(said) >= {"ppo.micro_batch_tokens", "sampler.rows", "gradient_checkpointing"}


def smaller_settings(said: str) -> set[str]:
    """The fields that a message tells to set, each to a value that is smaller than the default."""
    settings = re.findall(r"--set (\S+)", said)
    default, asked = (
        defaults.filled(recipe.parse(recipe.assign({"large_model_reference": "model"}, given))[0], defaults.AT_ONCE)[0]
        for given in ([], settings)
    )
    before, after = stages.flatten(default.model_dump()), stages.flatten(asked.model_dump())
    names = [setting.partition("=")[0] for setting in settings]
    numbers = [name for name in names if isinstance(before[name], int) and not isinstance(before[name], bool)]
    assert all(after[name] < before[name] for name in numbers)
    return set(names)


def test_a_stage_that_is_killed_names_the_smaller_settings_too(
    preferent: Preferent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "run_here", lambda *words, **options: 128 + signal.SIGKILL)
    code, said = preferent("run", "recipe.yaml", "--out", "new")
    assert code == 137
    assert "data failed (exit code 137)" in said
    assert "It was killed from outside, as happens when memory runs out." in said
    assert len(smaller_settings(said)) >= 3


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device", "metrics.jsonl"), "metrics.jsonl: No space left on device; fix that"),
        (PermissionError(13, "Permission denied", "metrics.jsonl"), "metrics.jsonl: Permission denied; fix that"),
        (OSError(30, "Read-only file system", "f"), "f: Read-only file system; fix that"),
        (
            type("SafetensorError", (Exception,), {})("I/O error: No space left on device (os error 28)"),
            "disk: No space left on device; fix that, then run the same command again",
        ),
    ],
)
def test_a_disk_that_refuses_in_the_middle_is_told(
    preferent: Preferent, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    failing(monkeypatch, error)
    code, said = preferent("ppo", "--recipe", "recipe.yaml", *STAGE)
    assert code == 3
    assert f"preferent: {expected}" in said or expected in said.rpartition("preferent: ")[2]


# Reward functions


REWARDS = """
def boom(prompts, answers):
    raise KeyError("x")
def nan(prompts, answers):
    return [float("nan")] * len(answers)
def short(prompts, answers):
    return [1.0]
def text(prompts, answers):
    return ["good"] * len(answers)
def leaves(prompts, answers):
    raise SystemExit(0)
"""


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("mine:boom", 3, "mine:boom raised KeyError: 'x' ({folder}/mine.py:3); fix it"),
        ("mine:nan", 3, "mine:nan returned nan for the answer "),
        ("mine:short", 3, "mine:short returned 1 scores for 2 answers"),
        ("mine:text", 3, "mine:text returned 'good' for the answer "),
        ("mine:leaves", 3, "mine:leaves raised SystemExit: 0"),
        ("mine:none", 2, "mine:none cannot be imported: AttributeError: "),
        ("nothing:none", 2, "nothing:none cannot be imported: ModuleNotFoundError: No module named 'nothing'"),
        ("broken:reward", 2, "broken:reward cannot be imported: SyntaxError: "),
        (
            "nocolon",
            3,
            "nocolon: no such folder, and no hub id (OWNER/NAME) either, and it is not of the form module:function",
        ),
    ],
)
def test_a_bad_reward_function_is_told_and_once_mended_the_run_goes_on(
    preferent: Preferent, monkeypatch: pytest.MonkeyPatch, name: str, code: int, expected: str
) -> None:
    Path("mine.py").write_text(REWARDS)
    Path("broken.py").write_text("def reward(:\n")
    for module in ("mine", "broken"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    words = ["run", "recipe.yaml", "--out", "new", "--set", f"reward.sources={name}", "--set", "compare.judge=reward"]
    result, said = preferent(*words)
    assert result == code
    assert "reward.sources: " + expected.format(folder=Path.cwd()) in said
    if name == "mine:boom":
        monkeypatch.setattr(sys.modules["mine"], "boom", lambda prompts, answers: [1.0] * len(answers))
        assert preferent(*words)[0] == 0
    monkeypatch.delitem(sys.modules, "mine", raising=False)


# Numbers that mean little


def test_steps_that_mean_two_hundred_epochs_are_warned_of(
    preferent: Preferent, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--set", "reward.batch_size=24", "--set", "reward_model_train_steps=201"]
    code, said = preferent("run", "recipe.yaml", "--dry-run", *words)
    assert code == 0
    warned = "reward_model_train_steps: 201 steps of 24 are 201 epochs of 24 rows, which are then learnt by heart"
    assert f"reward: {warned}" in said
    assert "3 epochs would be --set reward_model_train_steps=3" in said
    assert "learnt by heart" not in preferent("run", "recipe.yaml", "--dry-run")[1]
    monkeypatch.setattr(progress, "MANY_EPOCHS", 0.2)
    said = preferent("run", "recipe.yaml", "--out", "new")[1]
    for field in ("reward_model_train_steps", "reinforcement_learning_train_steps"):
        assert f"{field}: 2 steps of 4 are 0 epochs of " in said


def test_a_validation_group_of_three_rows_is_warned_of(preferent: Preferent) -> None:
    write("few.jsonl", [*pairs(30)])
    code, said = preferent("data", "prepare", "--recipe", "recipe.yaml", "--set", "preference_dataset=few.jsonl",
                           "--out", "data")  # fmt: skip
    assert code == 0
    assert "preference/validation.jsonl holds only 3 rows: too few for reliable measurements" in said
    assert "raise data.validation_share and data.test_share, or name an eval_dataset" in said


# Signals


@pytest.mark.acceptance
def test_ctrl_c_twice_leaves_at_once_and_the_same_command_goes_on(preferent: Preferent) -> None:
    steps = ["--set", "reward_model_train_steps=100000", "--set", "reward.validation_every=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "preferent", "run", "recipe.yaml", "--out", "new", *steps],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    said = ""
    while "reward 1/100000" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    said += process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "stopped in reward; the same command goes on from here" in said
    assert "Traceback" not in said
    assert files.read_json(Path("new/run.json"))["stages"]["data"]["done"]
    assert yaml.safe_load(Path("new/recipe.yaml").read_text())["reward_model_train_steps"] == 100000
