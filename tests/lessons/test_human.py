"""Lesson 5 with `WHO = "me"`: it prints a link, waits while a person answers at the page, and goes on."""

import re
import threading
import time
from pathlib import Path

import pytest

from preferent import files

human = pytest.importorskip("exercises.you_are_the_human", reason="the lessons need pip install 'preferent[lessons]'")
pytest.importorskip("uvicorn", reason="the page needs pip install 'preferent[ui]'")

PEOPLE, VOTES = ("Anna", "Leo", "Mira", "Nils", "Olga"), 4


def test_the_lesson_waits_for_a_person_at_the_page(tmp_path: Path, capsys):
    """The person opens the link in a session of their own, and would answer one question more than the lesson wants."""
    pair = {"candidate_0": " saw a dog.", "candidate_1": " saw a dog at the zoo.", "choice": 0}
    rows, log = tmp_path / "pairs.jsonl", tmp_path / "page.log"
    files.write_jsonl(rows, [{"input_text": f"{name} went out.", **pair} for name in PEOPLE])
    given: list[int] = []

    def person() -> None:
        while not (log.exists() and (link := human.LINK.search(log.read_bytes()))):
            time.sleep(0.05)
        given.append(human.vote(link.group().decode(), human.taste, VOTES + 1))

    at_the_page = threading.Thread(target=person)
    at_the_page.start()
    asked = human.ask(["--file", str(rows), "--out", str(tmp_path / "votes")], VOTES, "me", log)
    at_the_page.join()
    assert asked == VOTES == given[0]
    assert re.search(rf"Open http://\S+/#\S+\nThe lesson goes on .* {VOTES} questions", capsys.readouterr().out)
    votes = files.read_jsonl(tmp_path / "votes/preferences.jsonl")
    assert len(votes) == VOTES
    assert all(row[f"candidate_{row['choice']}"].endswith("zoo.") for row in votes), "what the person chose"
