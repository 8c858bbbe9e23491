"""How long the label server takes to save a vote, while four people vote at once.

python bench/label.py [--votes N] [--people N] [--questions N] [--quick]

Starts `preferent label` on pairs made up here, and one process a person. *At once* is the worst case: everybody sends
the next vote the moment the last one was acknowledged. *In turn* leaves 50 ms between two votes of a person, still far
faster than anybody reads. A time is from before the request to after the answer, which comes when the vote is on the
disk. Exits with 1 where the 95th percentile is above 50 ms.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from labelling import Person, serving

from preferent import files

LIMIT = 0.050
ANSWER = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 8


def vote(address: str, token: str, votes: int, pause: float, queue: "multiprocessing.Queue[list[float]]") -> None:
    """One person's votes, and how long each took, in seconds."""
    person = Person(address, token)
    asked, times = person.get("/api/queue"), []
    for index in range(votes):
        start = time.perf_counter()
        asked = person.vote(asked, ("left", "right", "tie")[index % 3], seconds=4.2, note="")
        times.append(time.perf_counter() - start)
        assert person.status == 200, asked
        time.sleep(pause)
    queue.put(times)


def measure(people: int, votes: int, questions: int, pause: float) -> np.ndarray:
    """The times of all votes, in seconds."""
    names = [f"person-{index}" for index in range(people)]
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {
                "input_text": f"Question {i}?",
                "candidate_0": f"{i} {ANSWER}",
                "candidate_1": f"{ANSWER} {i}",
                "choice": 0,
            }
            for i in range(questions)
        ]
        files.write_jsonl(Path(folder) / "rows.jsonl", rows)
        given = {"file": Path(folder) / "rows.jsonl", "annotators": names, "overlap": people, "seed": 0}
        with serving(Path(folder) / "labels", **given) as server:
            found: multiprocessing.Queue[list[float]] = multiprocessing.Queue()
            tokens = [server.link(name).partition("#")[2] for name in names]
            workers = [
                multiprocessing.Process(target=vote, args=(server.address, token, votes, pause, found))
                for token in tokens
            ]
            for worker in workers:
                worker.start()
            times = np.concatenate([found.get() for _ in workers])
            kept = server.person("").get("/api/overview")["votes"]
            assert kept == people * votes, json.dumps(kept)
            return times


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--votes", type=int, default=500, help="votes of each person (default: 500)")
    words.add_argument("--people", type=int, default=4, help="people at once (default: 4)")
    words.add_argument("--questions", type=int, default=2000, help="pairs in the folder (default: 2000)")
    words.add_argument("--quick", action="store_true", help="50 votes of each on 200 pairs")
    given = words.parse_args()
    votes, questions = (50, 200) if given.quick else (given.votes, given.questions)
    print("| four people | votes | p50 ms | p95 ms | p99 ms | largest ms |".replace("four", str(given.people)))
    print("|---|---|---|---|---|---|")
    slow = False
    for name, pause in (("at once", 0.0), ("in turn", 0.05)):
        times = measure(given.people, votes, questions, pause)
        p50, p95, p99 = np.percentile(times, [50, 95, 99])
        cells = " | ".join(f"{value * 1000:.1f}" for value in (p50, p95, p99, times.max()))
        print(f"| {name} | {times.size} | {cells} |", flush=True)
        slow = slow or p95 > LIMIT
    sys.exit(int(slow))


if __name__ == "__main__":
    main()
