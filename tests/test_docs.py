"""The documentation is true: generated pages are fresh, and code blocks run.

A comment before a block says what it is: `not run: REASON`; `needs a run` (it is in runs/small: the block is tried in
the acceptance tests); `file: NAME` (the block is that file). Every other bash or python block is run here.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from forking import PREFERENT

from preferent.cli import arguments
from preferent.config import recipe
from preferent.runs import metrics

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
MATHEMATICS = {
    "losses": "training",
    "advantages": "training",
    "vocabulary": "models",
    "normalization": "rewards",
    "scoring": "rewards",
}
"""The modules whose functions pages name, and their rooms."""

SMALL = """
large_model_reference: models/base
preference_dataset: data/preference.jsonl
prompt_sequence_length: 24
target_sequence_length: 8
reward_model_train_steps: 4
reinforcement_learning_train_steps: 2
sft: {dataset: data/text.jsonl, train_steps: 4, batch_size: 8, validation_every: 2}
reward: {normalize_prompts: 8, batch_size: 8, validation_every: 2}
ppo: {batch_size: 8, validation_every: 1, validation_prompts: 8}
infer: {max_prompts: 8}
threads: 1
"""


@dataclass(frozen=True)
class Block:
    language: str
    mark: str
    text: str


def blocks(name: str) -> Iterator[Block]:
    for found in BLOCK.finditer((ROOT / name).read_text()):
        yield Block(found["language"], found["mark"] or "", found["text"])


def write_data(folder: Path) -> None:
    """A few rows of each kind under the names that the pages use."""
    words = ["the cat", "a dog", "my bird", "our sun", "this moon", "that river", "some rain", "no tree"]
    prompts = [
        f"{word} {other} number {i}" for i, (word, other) in enumerate(zip(words * 12, words[::-1] * 12, strict=True))
    ]
    rows = {
        "preference": [
            {"input_text": prompt, "candidate_0": " is happy.", "candidate_1": " is sad.", "choice": i % 2}
            for i, prompt in enumerate(prompts)
        ],
        "prompt": [{"input_text": prompt} for prompt in prompts],
        "text": [{"text": f"{prompt} is happy."} for prompt in prompts],
    }
    (folder / "data").mkdir()
    for name, found in rows.items():
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


def do(block: Block, folder: Path) -> None:
    """Run a block as a reader would, in the folder."""
    if block.mark.startswith("file: "):
        (folder / block.mark.removeprefix("file: ")).write_text(block.text)
        return
    argv = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euc"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*argv, block.text], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_marked_as_the_pages_say(name):
    for block in blocks(name):
        assert re.fullmatch(r"|needs a run|not run: .+|file: \S+", block.mark), block.mark
        assert block.language in ("bash", "python", "yaml", "json", "text"), block.language
        if block.language == "yaml":
            recipe.parse(yaml.safe_load(block.text))
        elif block.language == "json":
            json.loads(block.text)


@pytest.mark.acceptance
@pytest.mark.parametrize("name", NAMES)
def test_blocks_run(name, tmp_path):
    write_data(tmp_path)
    for block in blocks(name):
        runs = block.language in ("bash", "python") and not block.mark
        if runs or block.mark.startswith("file: "):
            do(block, tmp_path)


@pytest.mark.parametrize("page", ["recipe.schema.json", "recipe.md", "cli.md", "api.md"])
def test_reference_pages_are_fresh(page):
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (ROOT / "docs" / page).read_text() == generate.PAGES[page](), "make docs"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_package_index_shows_the_readme_without_links_that_lead_nowhere():
    hatch_build = importlib.import_module("hatch_build")
    text = hatch_build.long_description((ROOT / "README.md").read_text())
    assert not re.search(r"\]\((?!https://)", text) and "<!--" not in text and "![" not in text
    assert "[" not in re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S), "a link or an image is left in part"
    assert "SmolLM2 (`docs/how_to/smollm2.md`)" in text and "preferent run my.yaml" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_page_that_says_gcpc_says_what_that_is(name):
    text = (ROOT / name).read_text()
    assert "GCPC" not in text or re.search(r"Google Cloud\s+Pipeline\s+Components", text)


@pytest.mark.parametrize("name", NAMES)
def test_no_column_of_a_table_is_without_a_name(name):
    for header in re.findall(r"^(\|.*\|)\n\|(?:-+\|)+$", (ROOT / name).read_text(), re.M):
        assert all(cell.strip() for cell in header.strip("|").split("|")), header


@pytest.mark.parametrize("name", ["gcpc", "trl", "openrlhf", "llama_factory"])
def test_what_a_table_of_names_calls_ours_is_a_field_or_a_verb(name):
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", (ROOT / f"docs/how_to/from_{name}.md").read_text(), re.M)
    assert len(rows) > 10
    verbs = arguments.parser()._subparsers._group_actions[0].choices
    for _, ours, _ in rows[1:]:
        for word in re.findall(r"`([^`]+)`", ours):
            known = word.split()[1] in verbs if word.startswith("preferent ") else word in {*recipe.names()}
            assert known, word


@pytest.mark.parametrize("name", NAMES)
def test_the_tests_and_functions_that_a_page_names_exist(name):
    text = (ROOT / name).read_text()
    for path, function in re.findall(r"`(tests/[\w/]+\.py)::(\w+)", text):
        assert re.search(rf"^def {function}\(", (ROOT / path).read_text(), re.M), (path, function)
    for module, function in re.findall(rf"`({'|'.join(MATHEMATICS)})\.(?!json|py)(\w+)`", text):
        place = importlib.import_module(f"preferent.{MATHEMATICS[module]}.{module}")
        assert hasattr(place, function), (module, function)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with data, a model from nothing, and a finished run of it in runs/small."""
    folder = tmp_path_factory.mktemp("docs")
    write_data(folder)
    (folder / "small.yaml").write_text(SMALL)
    sizes = "--vocab-size 300 --hidden-size 32 --layers 2 --heads 2 --positions 64"
    do(Block("bash", "", f"preferent scratch --text data/text.jsonl --out models/base {sizes}"), folder)
    subprocess.run([*PREFERENT, "run", "small.yaml"], cwd=folder, check=True)
    return folder


@pytest.mark.acceptance
@pytest.mark.parametrize("name", [name for name in NAMES if any(block.mark == "needs a run" for block in blocks(name))])
def test_blocks_that_need_a_run(name, small):
    for block in blocks(name):
        if block.mark == "needs a run":
            do(block, small)


@pytest.mark.acceptance
def test_every_metric_is_defined(small):
    defined = set(re.findall(r"`([a-z_/0-9]+)`", (ROOT / "docs" / "metrics.md").read_text()))
    for stage in ("sft", "reward", "judge", "policy"):
        for row in metrics.read(small / "runs/small" / stage / "metrics.jsonl"):
            assert row.keys() - {"step"} <= defined, stage


@pytest.mark.acceptance
def test_a_moved_run_loads_and_is_done(small, tmp_path):
    """The run directory moves; predictions and models are read where it lies now, and nothing is made again."""
    (small / "runs/small").rename(small / "runs/moved")
    try:
        words = "preferent run small.yaml --out runs/moved 2>&1 | tee log; test $(grep -c 'done already' log) -eq 9"
        do(Block("bash", "", words), small)
    finally:
        (small / "runs/moved").rename(small / "runs/small")
