"""What is said of the exact checks is so: the page and the lists of bugs name tests and places that are there."""

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NODE = re.compile(r"`(tests/[\w/]+\.py(?:::\w+)?)`")
MUTANTS = yaml.safe_load((ROOT / "tests/mutants.yaml").read_text())
PLACED = [entry for entry in MUTANTS if "file" in entry]


def exists(node: str) -> bool:
    """Whether a test function or a file of tests is there."""
    file, _, name = node.partition("::")
    path = ROOT / file
    if not path.exists():
        return False
    functions = {part.name for part in ast.walk(ast.parse(path.read_text())) if isinstance(part, ast.FunctionDef)}
    return not name or name.partition("[")[0] in functions


def test_every_test_that_the_page_names_is_there() -> None:
    nodes = NODE.findall((ROOT / "docs/exact.md").read_text())
    assert len(nodes) > 20
    assert [node for node in nodes if not exists(node)] == []


def test_every_exact_check_is_on_the_page() -> None:
    page = (ROOT / "docs/exact.md").read_text()
    for path in sorted((ROOT / "tests/exact").glob("test_*.py")):
        assert f"tests/exact/{path.name}" in page, path.name


def test_a_deliberate_bug_has_one_name() -> None:
    names = [entry["name"] for entry in MUTANTS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("entry", PLACED, ids=lambda entry: entry["name"])
def test_a_deliberate_bug_has_one_place_and_a_test(entry: dict[str, str | list[str]]) -> None:
    source = (ROOT / "preferent" / str(entry["file"])).read_text()
    assert source.count(str(entry["old"])) == 1
    assert entry["old"] != entry["new"]
    ast.parse(source.replace(str(entry["old"]), str(entry["new"])))
    tests = entry["test"] if isinstance(entry["test"], list) else [entry["test"]]
    assert [test for test in tests if not exists(str(test))] == []


@pytest.mark.parametrize("old", ["no such line of code", "import "])
def test_a_deliberate_bug_without_its_one_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str
) -> None:
    """Before any test is run: a bug that is not put in would die of nothing, or seem to live."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    monkeypatch.chdir(ROOT)
    import mutants

    entry = {"name": "lost", "what": "x", "file": "randomness.py", "old": old, "new": "x", "test": "tests/x.py"}
    (tmp_path / "mutants.yaml").write_text(yaml.safe_dump([entry]))
    placed, bare, wrong = mutants.named(tmp_path / "mutants.yaml")
    count = (ROOT / "preferent/randomness.py").read_text().count(old)
    assert (placed, bare) == ([], [])
    assert wrong == [f"lost: its old text is {count} times in randomness.py, not once"] and count != 1
    monkeypatch.setattr(mutants, "named", lambda path: (placed, bare, wrong))
    monkeypatch.setattr(mutants, "tried", lambda *rest, **more: pytest.fail("it began"))
    monkeypatch.setattr(sys, "argv", ["mutants.py", "--strict"])
    with pytest.raises(SystemExit, match="lost: its old text is"):
        mutants.main()
    monkeypatch.setattr(mutants, "named", lambda path: ([], [], []))
    monkeypatch.setattr(sys, "argv", ["mutants.py", "--only", "misspelled"])
    with pytest.raises(SystemExit, match="misspelled: is no named mutant"):
        mutants.main()
    del sys.modules["mutants"], sys.modules["mutate"]


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import mutate

    yield mutate
    del sys.modules["mutate"]


def test_changes_are_single_and_leave_the_rest(mutate) -> None:
    source = (
        '"""Doc."""\n\n\ndef f(a: int | None = 1) -> int | None:\n    """Doc."""\n    return -a < 2 and max(a, 0.5)\n'
    )
    found = list(mutate.changes("f.py", source))
    assert {change.what for change in found} == {
        "1 -> 2",
        "-a < 2 and max(a, 0.5) -> -a < 2 or max(a, 0.5)",
        "-a < 2 -> -a <= 2",
        "-a -> a",
        "2 -> 3",
        "max(a, 0.5) -> min(a, 0.5)",
        "0.5 -> 1.0",
    }
    assert len({change.text for change in found}) == len(found) and all(change.text != source for change in found)
    for change in found:
        ast.parse(change.text)
        assert "int | None" in change.text and change.line == source.splitlines()[change.number - 1].strip()


def test_a_change_is_drawn_by_what_it_says_wherever_it_stands(mutate) -> None:
    first, again = (list(mutate.changes("f.py", source)) for source in ("x = 1 + y\n", "z = 3\n\nx = 1 + y\n"))
    keys = {change.key(1) for change in again}
    assert {change.key(1) for change in first} < keys
    assert not {change.key(2) for change in first} & keys
    assert [c.what for c in mutate.changes("f.py", "x = 1, 1\n")] == ["1 -> 2", "1 -> 2 (2)"]


def test_what_is_argued_away_is_a_change_that_there_is(mutate) -> None:
    rows = yaml.safe_load((ROOT / "tests/equivalent.yaml").read_text())
    sources = {row["file"]: (ROOT / "preferent" / row["file"]).read_text() for row in rows}
    found = {(file, c.line, c.what) for file, source in sources.items() for c in mutate.changes(file, source)}
    for row in rows:
        assert (row["file"], row["line"], row["change"]) in found, row
        assert len(row["argument"]) > 20
