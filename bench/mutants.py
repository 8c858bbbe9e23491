"""Deliberate bugs: each is put into the source in memory, and a test has to fail; the named ones, then some drawn.

python bench/mutants.py [--strict] [--only NAME ...] [--drawn COUNT]

The named ones are in tests/mutants.yaml. The drawn ones are single changes of a syntax tree (bench/mutate.py), of the
modules in TESTED; those that change nothing one could observe are argued in tests/equivalent.yaml. This process
imports preferent and computes nothing; every mutant is a fork of it, which imports one module, and those that import
that one, afresh, through a loader that replaces its text; there is a fork for every core. No file is touched. Fails
where a mutant survives; refuses to begin where the text of one is not in its file exactly once.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.machinery
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grimp
import mutate
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SEED = 1
LIMIT_SECONDS = 60
LIMIT_BYTES = 8 << 30
HEAVY = (
    *("numpy", "scipy.optimize", "scipy.stats", "torch", "torch.utils.checkpoint", "safetensors.torch", "peft"),
    *("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "tokenizers", "pydantic"),
    *("hypothesis", "jinja2", "sentencepiece", "anyio.pytest_plugin", "xdist.plugin"),
)
GRAPH = grimp.build_graph("preferent", cache_dir=None)
TESTED = {
    "models/vocabulary.py": ("tests/training/test_losses.py", "tests/exact"),
    "training/losses.py": ("tests/training/test_losses.py", "tests/exact"),
    "models/batching.py": ("tests/models/test_batching.py", "tests/exact/test_padding.py"),
    "rewards/scoring.py": ("tests/rewards/test_scoring.py", "tests/exact/test_score.py", "tests/exact/test_padding.py"),
    "rewards/normalization.py": ("tests/rewards/test_scoring.py", "tests/exact/test_score.py"),
    "evaluation/statistics/win_rates.py": ("tests/evaluation/test_statistics.py", "tests/exact/test_verdict.py"),
    "evaluation/statistics/means.py": ("tests/evaluation/test_statistics.py", "tests/exact/test_verdict.py"),
    "evaluation/statistics/calibration.py": ("tests/evaluation/test_statistics.py", "tests/exact/test_reward_model.py"),
    "evaluation/statistics/agreement.py": ("tests/exact/test_agreement.py",),
    "evaluation/statistics/paired_tests.py": ("tests/exact/test_change.py",),
}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A name, the file below preferent/ with its whole text, and the tests of which one must fail."""

    name: str
    file: str
    text: str
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The test that failed ("" where none did), how pytest left, and the seconds that took."""

    killer: str
    code: int
    seconds: float


class Loader(importlib.machinery.SourceFileLoader):
    """Loads one module from a text, and not from its file or its bytecode."""

    text: str

    def get_code(self, fullname: str) -> Any:
        return compile(self.text, self.path, "exec", dont_inherit=True)


class Finder:
    """Finds the module of one file, with another text."""

    def __init__(self, file: str, text: str) -> None:
        parts = ("preferent", *Path(file).with_suffix("").parts)
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.text = text

    def forget(self) -> None:
        """Forget the module and all that import it, so that they are imported when they are next asked for."""
        for name in {self.name, *GRAPH.find_downstream_modules(self.name)} & set(sys.modules):
            package, _, own = name.rpartition(".")
            del sys.modules[name]
            if package in sys.modules and own in vars(sys.modules[package]):
                delattr(sys.modules[package], own)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.origin is not None
        loader = Loader(name, spec.origin)
        loader.text = self.text
        spec.loader = loader
        return spec


class First:
    """Remembers the first test that failed, or the file that could not be imported."""

    failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._note(report)

    def pytest_collectreport(self, report: Any) -> None:
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


@dataclass(frozen=True, slots=True)
class Trial:
    """A fork that runs tests on a mutant (None: the unchanged source); it writes the test that failed to `said`."""

    mutant: Mutant | None
    said: Path
    began: float


def started(tests: Sequence[str], mutant: Mutant | None, said: Path, log: Path) -> tuple[int, Trial]:
    """Start a fork that runs tests, with a file of the source replaced by a mutant's text; return its process id."""
    trial = Trial(mutant, said, time.perf_counter())
    child = os.fork()
    if child == 0:
        _perform(tests, mutant, log, said)
    return child, trial


def ended(running: dict[int, Trial]) -> tuple[Mutant | None, Verdict]:
    """Wait for one of the forks and take it out; return its mutant and verdict."""
    child, status = os.wait()
    trial, code = running.pop(child), os.waitstatus_to_exitcode(status)
    killer = trial.said.read_text() if trial.said.exists() else f"no end ({code})"
    return trial.mutant, Verdict(killer, code, time.perf_counter() - trial.began)


def tried(trials: Sequence[tuple[Mutant | None, Sequence[str]]], log: Path) -> Iterator[tuple[Mutant | None, Verdict]]:
    """Run the tests of every trial in a fork of its own, as many at once as there are cores; yield what has ended."""
    running: dict[int, Trial] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (mutant, tests) in enumerate(trials):
            if len(running) == len(os.sched_getaffinity(0)):
                yield ended(running)
            child, trial = started(tests, mutant, Path(folder, str(number)), log)
            running[child] = trial
        while running:
            yield ended(running)


def _perform(tests: Sequence[str], mutant: Mutant | None, log: Path, said: Path) -> None:
    """What the fork does; it leaves the name of the test that failed in `said`, and never returns.

    A mutant that goes on for ever is stopped by time or by memory, which is a failure too.
    """
    signal.alarm(LIMIT_SECONDS if mutant else 10 * LIMIT_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    if mutant:
        finder = Finder(mutant.file, mutant.text)
        finder.forget()
        sys.meta_path.insert(0, finder)
    first = First()
    code = 1
    try:
        code = pytest.main(["-q", "-x", "-m", "", "-p", "no:cacheprovider", *tests], plugins=[first])
        said.write_text(first.failed)
    finally:
        os._exit(int(code))


def named(path: Path) -> tuple[list[Mutant], list[str], list[str]]:
    """The mutants of a list; the names of those without a place; and what is wrong with the rest."""
    placed, bare, wrong = [], [], []
    for entry in yaml.safe_load(path.read_text()):
        name = entry["name"]
        if "equivalent" in entry:
            continue
        if "file" not in entry:
            bare.append(name)
            continue
        source = (ROOT / "preferent" / entry["file"]).read_text()
        if source.count(entry["old"]) != 1:
            wrong.append(f"{name}: its old text is {source.count(entry['old'])} times in {entry['file']}, not once")
            continue
        tests = entry["test"] if isinstance(entry["test"], list) else [entry["test"]]
        placed.append(Mutant(name, entry["file"], source.replace(entry["old"], entry["new"]), tuple(tests)))
    return placed, bare, wrong


def drawn(count: int, path: Path) -> list[Mutant]:
    """As many changes of the tested modules, by a draw that is keyed by what each change says."""
    found = [change for file in TESTED for change in mutate.changes(file, (ROOT / "preferent" / file).read_text())]
    argued = {(row["file"], row["line"], row["change"]) for row in yaml.safe_load(path.read_text())}
    chosen = sorted(found, key=lambda change: change.key(SEED))[:count]
    kept = [change for change in chosen if (change.file, change.line, change.what) not in argued]
    print(f"\n{len(chosen)} drawn of {len(found)} changes with seed {SEED}; {len(chosen) - len(kept)} are equivalent")
    return [Mutant(f"{c.file}:{c.number}: {c.line}: {c.what}", c.file, c.text, TESTED[c.file]) for c in kept]


def survivors(mutants: Sequence[Mutant], log: Path) -> list[str]:
    """Try every mutant and print a line each; return the names of those that no test noticed."""
    alive = []
    for mutant, verdict in tried([(mutant, mutant.tests) for mutant in mutants], log):
        assert mutant is not None
        print(f"{mutant.name:<26} {verdict.killer or 'SURVIVES'}  {verdict.seconds:.1f} s", flush=True)
        if not verdict.killer:
            alive.append(mutant.name)
    return alive


def shares(tests: Sequence[str]) -> list[list[str]]:
    """The tests in a share for each core; those of a file stay together."""
    places = {file: place for place, file in enumerate(dict.fromkeys(test.partition("::")[0] for test in tests))}
    count = min(len(places), len(os.sched_getaffinity(0)))
    return [[test for test in tests if places[test.partition("::")[0]] % count == core] for core in range(count)]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--strict", action="store_true", help="fail where a named mutant has no place yet")
    words.add_argument("--only", nargs="*", help="these named mutants alone")
    words.add_argument("--drawn", type=int, default=20, help="how many to draw")
    words.add_argument("--log", type=Path, default=Path(os.devnull), help="where pytest's own words go")
    given = words.parse_args()
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    mutants, bare, wrong = named(ROOT / "tests/mutants.yaml")
    known = {mutant.name for mutant in mutants}
    wrong += [f"{name}: is no named mutant that has a place" for name in given.only or () if name not in known]
    if wrong:
        sys.exit("\n".join(wrong))
    mutants = [mutant for mutant in mutants if not given.only or mutant.name in given.only]
    for name in HEAVY:
        importlib.import_module(name)
    for name in sorted(GRAPH.modules - {"preferent.__main__"}):
        with contextlib.suppress(ImportError):  # what needs an extra
            importlib.import_module(name)
    gc.freeze()  # no fork looks through all this for garbage
    tests = dict.fromkeys(test for mutant in mutants for test in mutant.tests)
    seconds = 0.0
    for _, whole in tried([(None, share) for share in shares([*tests])], given.log):
        if whole.killer or whole.code:
            sys.exit(f"on the unchanged source: {whole.killer or 'pytest could not run them'} ({whole.code})")
        seconds = max(seconds, whole.seconds)
    print(f"{len(tests)} tests pass on the unchanged source  {seconds:.1f} s")
    alive = survivors(mutants, given.log)
    if not given.only:
        alive += survivors(drawn(given.drawn, ROOT / "tests/equivalent.yaml"), given.log)
        for name in bare:
            print(f"{name:<26} not placed")
    problems = [f"{name}: survives" for name in alive]
    problems += [f"{name}: not placed" for name in bare] if given.strict else []
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
