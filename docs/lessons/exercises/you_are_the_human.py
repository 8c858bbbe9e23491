"""The exercises of lesson 5, and the person who stands in for you: a script at the labelling page."""

import json
import re
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from lesson import Wrong, exercise
from scipy import stats

from preferent.evaluation import statistics
from preferent.quickstart import synthetic_posts

LINK = re.compile(rb"http://\S+/#\S+")
Question = dict[str, Any]


def says_where(text: str) -> bool:
    """Return whether a summary names a place."""
    return bool(set(re.findall(r"\w+", text)) & set(synthetic_posts.PLACES))


def prefer(left: str, right: str) -> str:
    """Return `left`, `right` or `tie`: the answer that says where, and of two that do or do not, the shorter one."""
    worth = [(says_where(text), -len(text.split())) for text in (left, right)]
    return "tie" if worth[0] == worth[1] else "left" if worth[0] > worth[1] else "right"


def taste(question: Question) -> str:
    """Return the choice of the person who stands in for you; like a person it sees prompt and answers alone."""
    return prefer(question["left"], question["right"])


def vote(link: str, choose: Callable[[Question], str], votes: int) -> int:
    """Answer `votes` questions of the page by its own HTTP interface, as a browser does; return how many there were."""
    place, given = urlsplit(link), 0
    origin = f"{place.scheme}://{place.netloc}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor())

    def send(path: str, body: Any = None) -> dict[str, Any]:
        headers = {"Origin": origin, "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        with opener.open(urllib.request.Request(f"{origin}/api/{path}", content, headers), timeout=60) as reply:
            return dict(json.load(reply))

    send("session", {"token": place.fragment})
    queue = send("queue")
    while (question := queue["item"]) is not None and given < votes:
        body = {"key": str(uuid.uuid4()), "item": question["item"], "note": "", "seconds": 1}
        queue = send("vote", body | {"choice": choose(question)})
        given += 1
    return given


def ask(words: list[str], votes: int, who: str, log: Path) -> int:
    """Serve `preferent label WORDS`, let `who` ("script" or "me") answer `votes` questions, and end the server.

    A page for you has no more questions than that.
    """
    enough = ["--number", str(votes)] if who == "me" else []
    command = [sys.executable, "-m", "preferent", "label", *words, *enough, "--no-browser"]
    with open(log, "wb") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as server:
        try:
            while not (found := LINK.search(log.read_bytes())):
                if server.poll() is not None:
                    raise RuntimeError(log.read_text())
                time.sleep(0.1)
            link = found.group().decode()
            if who == "me":
                print(f"Open {link}\nThe lesson goes on when you have answered {votes} questions.")
                return _wait(link, votes)
            return vote(link, taste, votes)
        finally:
            server.terminate()


def _wait(link: str, votes: int) -> int:
    """Return the number of questions that a person has answered, once it is `votes` or there are no more."""
    while True:
        place = urlsplit(link)
        origin = f"{place.scheme}://{place.netloc}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor())
        headers = {"Origin": origin, "Content-Type": "application/json"}
        token = json.dumps({"token": place.fragment}).encode()
        opener.open(urllib.request.Request(f"{origin}/api/session", token, headers), timeout=60).close()
        with opener.open(urllib.request.Request(f"{origin}/api/queue", None, headers), timeout=60) as reply:
            queue = json.load(reply)
        if queue["done"] >= votes or queue["item"] is None:
            return int(queue["done"])
        time.sleep(2)


def sees(wins: np.ndarray, votes: int) -> np.ndarray:
    """Return whether the 95 % interval (Wilson's) of so many `wins` among `votes` votes without ties excludes one half:
    whether |wins - votes / 2| is above 1.96 standard deviations of a fair coin."""
    return np.abs(2 * np.asarray(wins) - votes) > stats.norm.ppf(0.975) * np.sqrt(votes)


def power(rate: float, votes: int) -> float:
    """Return the probability that the interval of `votes` votes excludes one half, where `rate` is the true one."""
    wins = np.arange(votes + 1)
    return float(stats.binom.pmf(wins, votes, rate) @ sees(wins, votes))


@exercise
def votes_for(answer: int) -> None:
    """Check how many votes show a win rate of 70 % with a probability of 80 %."""
    if not isinstance(answer, int) or answer < 1:
        raise Wrong("answer with a whole number of votes.")
    if power(0.7, answer) < 0.8:
        raise Wrong(f"with {answer} votes the probability is {power(0.7, answer):.0%}.")
    if answer > 55:
        raise Wrong(f"that is enough ({power(0.7, answer):.0%}); fewer do.")


@exercise
def verdict(answer: str) -> None:
    """Check the verdict about 23 wins of 40."""
    low, high = statistics.wilson(23, 40)
    if answer not in ("better", "worse", "inconclusive"):
        raise Wrong('answer "better", "worse" or "inconclusive".')
    if answer != "inconclusive":
        raise Wrong(f"the interval goes from {low:.2f} to {high:.2f}.")


@exercise
def fair(answer: str) -> None:
    """Check why votes on test prompts must not teach."""
    if answer not in ("a", "b", "c"):
        raise Wrong("answer with one of the letters.")
    if answer == "a":
        raise Wrong("the page asks either kind in the same way.")
    if answer == "c":
        raise Wrong("a vote says the same wherever it was given; what matters is what the model saw.")
