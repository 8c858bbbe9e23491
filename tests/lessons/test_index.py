"""The page of the lessons names tests and headings that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LESSONS = ROOT / "docs/lessons"
PAGE = (LESSONS / "index.md").read_text()


def test_the_tests_that_the_page_names_are_there():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) >= 8, "each of the eight properties"
    for path, name in named:
        assert not name or f"def {name}(" in (ROOT / path).read_text(), (path, name)


def test_the_headings_that_the_page_names_are_there():
    sources = {path.name[0]: path.read_text().replace("`", "") for path in LESSONS.glob("[0-9]_*.py")}
    named = [(number, title) for number, rest in re.findall(r"lesson (\d),([^;|]*)", PAGE)
             for title in re.findall(r"\*([^*]+)\*", rest)]  # fmt: skip
    assert {number for number, _ in named} == set(sources)
    for number, title in named:
        assert re.search(rf"^# (## |\*\*).*{re.escape(title)}", sources[number], re.M), (number, title)
