"""Stands in for a person at the page of `preferent label`: `python person.py DATA LINK`.

It goes through the same door as a browser: the link's token opens a session, and every pair is fetched, read and voted
on over HTTP. Its taste is the outside judge's, learnt from pairs that no part of preferent has seen: it calls the
answer better that the judge scores higher, and equal ones a tie. Like a person it is sure only now and then: it says
how clear the choice was, from 1 to 3.
"""

import argparse
import http.cookiejar
import json
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from outside import Outside, pairs

CLEAR = (1.0, 3.0)
"""Differences of score from which a choice is called clear and very clear."""


class Session:
    """What a browser does: keeps the cookie, says where it comes from, sends JSON."""

    def __init__(self, link: str) -> None:
        place = urlsplit(link)
        self.origin = f"{place.scheme}://{place.netloc}"
        jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), jar)
        self.post("session", token=place.fragment)

    def get(self, path: str) -> dict[str, Any]:
        with self.opener.open(f"{self.origin}/api/{path}", timeout=60) as reply:
            return json.load(reply)

    def post(self, path: str, **values: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Origin": self.origin}
        request = urllib.request.Request(f"{self.origin}/api/{path}", json.dumps(values).encode(), headers)
        with self.opener.open(request, timeout=60) as reply:
            return json.load(reply)


def opinion(taste: Outside, item: dict[str, Any]) -> dict[str, Any]:
    """The vote on an item: a choice, and how clear it was."""
    prompt = "".join(turn["text"] for turn in item["prompt"])
    left, right = taste.score([prompt + item["left"], prompt + item["right"]])
    margin = abs(left - right)
    choice = "tie" if margin == 0 else "left" if left > right else "right"
    return {"choice": choice, "strength": None if choice == "tie" else 1 + int(sum(margin >= limit for limit in CLEAR))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("link")
    asked = parser.parse_args()
    taste = Outside(pairs(asked.data / "outside.jsonl"))
    session = Session(asked.link)
    queue = session.get("queue")
    votes = 0
    while (item := queue["item"]) is not None:
        begun = time.monotonic()
        vote = opinion(taste, item)
        seconds = time.monotonic() - begun
        queue = session.post("vote", key=str(uuid.uuid4()), item=item["item"], note="", seconds=seconds, **vote)
        votes += 1
    print(f"{votes} votes given; {queue['done']} of {queue['total']} pairs are labelled")


if __name__ == "__main__":
    main()
