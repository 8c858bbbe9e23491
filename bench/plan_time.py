"""The time of every stage against what `preferent plan --calibrate` says: `python bench/plan_time.py RECIPE`.

Plans, then does the stages one after the other, each in a process of its own as a run does, and prints planned and
taken seconds. Exit code 1 where a stage of over 20 seconds, or all together, are planned more than 25 % off. Only an
idle machine says something.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from preferent.commands import plan, time_estimate
from preferent.commands.inference import machine_speed
from preferent.config import recipe, stage_graph
from preferent.pipelines.launchers import child_process

LIMIT, SHORT = 0.25, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="leave the run in this folder, which does not exist yet")
    asked = parser.parse_args()
    found, _ = recipe.load(asked.recipe, asked.settings)
    with tempfile.TemporaryDirectory() as temporary:
        wrong = compare(found, asked.out or Path(temporary) / "run")
    if wrong:
        sys.exit(f"planned / taken off by more than {LIMIT:.0%}: {', '.join(wrong)}")


def compare(found: recipe.Recipe, out: Path) -> list[str]:
    """Print a line for each stage that computes and for all of them; return those that are planned wrongly."""
    out.mkdir(parents=True)
    (out / "recipe.yaml").write_text(recipe.dump(found))
    tasks = stage_graph.build(found)
    perform(tasks[0].command(str(out)))
    facts, work = plan.model_facts(found, out / "data", None), plan.work_of(found, out / "data")
    assert facts is not None
    began = time.perf_counter()
    speeds = machine_speed.measure(facts, work)
    print(f"calibrated in {time.perf_counter() - began:.0f} s; prompts of {work.prompt}, answers of {work.answer}\n")
    print("| stage | planned s | taken s | planned / taken |\n|---|---|---|---|", flush=True)
    planned = {stage.stage: stage.total for stage in time_estimate.times(facts.recipe, tasks, work, speeds)}
    taken = {task.name: perform(task.command(str(out))) for task in tasks[1:] if task.name in planned}
    wrong = []
    rows = {name: (planned[name], seconds) for name, seconds in taken.items()}
    for name, (estimate, seconds) in (rows | {"all": (sum(planned.values()), sum(taken.values()))}).items():
        print(f"| {name} | {estimate:.0f} | {seconds:.0f} | {estimate / seconds:.2f} |", flush=True)
        if seconds > SHORT and abs(estimate / seconds - 1) > LIMIT:
            wrong.append(f"{name} {estimate / seconds:.2f}")
    return wrong


def perform(words: list[str]) -> float:
    """Do a `preferent` command; return its seconds."""
    began = time.perf_counter()
    if error := child_process.run_verb(words):
        sys.exit(str(error))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
