"""Side by side under the names of AutoSxS: rows of an evaluation dataset, judgments, and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from preferent import files
from preferent.config import recipe as recipes
from preferent.data import judgment_outcomes, judgments
from preferent.data.formats import row_sources
from preferent.data.types import SEPARATOR
from preferent.errors import UsageError
from preferent.kubeflow import component_work, object_store, parameters
from preferent.runs import remote_files
from preferent.runs.directory import ComparisonDirectory, RunDirectory

TASKS = {"question_answer": "question_answering"}
"""Tasks of older versions, and what they are called now."""
INSTRUCTIONS = {"summarization": "Summarize the text.", "question_answering": "Answer the question."}
"""What `{{ default_instruction }}` means in a template."""
RESPONSES = ("response", "prediction", "answer")
"""How a column of answers may begin that has no name: `response_a`, `prediction_a`, …"""
VOTES = {"A": "A", "B": "B", "Model A": "A", "Model B": "B", "tie": "tie", "Tie": "tie"}
SIDES = ("a", "b")
LANGUAGE_MODELS = ("http://", "https://", "local:")
"""How the name of a language model that judges begins."""
SETTINGS = {"temperature": "sampler.temperature", "maxOutputTokens": "target_sequence_length"}
SETTINGS |= {"max_output_tokens": "target_sequence_length", "seed": "seed"}
"""Parameters of a model that answers, and the fields that they are here."""
ROWS, ERRORS, UNJUDGED, PEOPLE = "rows.jsonl", "errors.jsonl", "unjudged.jsonl", "people.jsonl"


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a judge said of two models' answers: its judgments, the preferences made of them, and how many there are."""

    judgments: Path
    preferences: str
    counts: Mapping[str, float]


def preferences(
    pipeline_root: str, answers_a: str, answers_b: str, prompts: str, task_type: str, recipe: str
) -> Feedback:
    """Return the preferences of the judge between two folders of answers.

    Pairs of equal answers and unreadable verdicts are left out and counted; a judge that contradicts itself when the
    answers change places makes a tie.
    """
    key = {"sides": [answers_a, answers_b], "prompts": prompts, "task_type": task_type, "recipe": recipe}
    run = parameters.run_place(pipeline_root, parameters.run_name("", "feedback", key))
    out, judge = object_store.local(run), parameters.autorater(recipe)
    source = component_work.prompt_rows(prompts, parameters.artifacts_folder(out) / "prompts.jsonl")
    further = ("--prompts", str(source), "--write", "preferences")
    sides = [str(object_store.local(answers)) for answers in (answers_a, answers_b)]
    comparison = _compare(sides, task_type, judge, out, further)
    rows = files.read_jsonl(comparison.folder / "preferences.jsonl")
    judged = len(files.read_jsonl(comparison.judgments))
    ties = sum(row["choice"] == "tie" for row in rows)
    counts: dict[str, float] = {
        "judgments": judged,
        "preferences": len(rows),
        "ties": ties,
        "left out": judged - len(rows),
    }
    metrics = files.read_json(comparison.metrics)
    order = metrics["judges"][metrics["headline"]].get("order", {})
    counts |= {name: order[name] for name in ("unparsable", "consistent") if order.get(name) is not None}
    place = object_store.kept(run, comparison.folder / "preferences.jsonl")
    return Feedback(comparison.judgments, place, counts)


def task_name(task: str) -> str:
    """Return the rubric of a task such as `summarization@001`."""
    name = task.partition("@")[0]
    name = TASKS.get(name, name)
    if name not in INSTRUCTIONS and name != "helpfulness":
        raise UsageError(f"task: {task}: is unknown; the tasks are {', '.join(INSTRUCTIONS)}, helpfulness")
    return name


def _compare(
    sides: Sequence[str], task: str, autorater: str, out: Path, further: Sequence[str] = ()
) -> ComparisonDirectory:
    """Have the judge, and whoever else `further` names, choose between two files of answers."""
    if not autorater:
        raise UsageError(
            "autorater: is missing; name who judges in the parameter recipe, as `preferent compare --judge` does: "
            '"autorater: URL#MODEL", "autorater: local:MODEL" or the folder of a reward model'
        )
    words = [*sides, "--names", ",".join(SIDES), "--judge", autorater, *further, "--set", "infer.max_prompts=null"]
    if autorater.startswith(LANGUAGE_MODELS):
        words += ["--task", task_name(task)]
    component_work.verb("compare", *words, "--out", str(out))
    return RunDirectory(out).comparison


def begin(values: Mapping[str, Any]) -> str:
    """Read the rows of an evaluation dataset into a run of their own; models answer where there are no answers."""
    if values["judgments_format"] not in ("jsonl", "json"):
        raise UsageError(
            f"judgments_format: {values['judgments_format']}: write jsonl or json; there is no BigQuery here"
        )
    task_name(values["task"])
    named = {key: value for key, value in values.items() if key != "pipeline_root"}
    model = {"large_model_reference": values["model_a"] or values["model_b"] or "none", "prompt_dataset": "none"}
    place = parameters.run_place(values["pipeline_root"], parameters.run_name("", "autosxs", named))
    run = object_store.local(place)
    further = parameters.merged(model, values["recipe"])
    files.write_json(run / "parameters.json", dict(values))
    files.write_atomic(RunDirectory(run).recipe, recipes.dump(recipes.parse(further)[0]))
    rows, errors = _rows(values)
    if not rows:
        raise UsageError(
            f"{values['evaluation_dataset']}: no row can be used; {errors[0]['row']}: {errors[0]['error']}"
            if errors
            else f"{values['evaluation_dataset']}: has no rows"
        )
    _require_ids(rows)
    files.write_jsonl(run / ERRORS, errors)
    for side in SIDES:
        _answer(run, side, rows, values)
    files.write_jsonl(run / ROWS, rows)
    _write_votes(run, rows, values["human_preference_column"])
    return object_store.kept(place, run)


def _rows(values: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the rows of the dataset, which may be remote, and those that cannot be used, with the reasons."""
    names = [name.strip() for name in values["evaluation_dataset"].split(",")]
    rows, errors = [], []
    with remote_files.copied(names):
        for place, row in (pair for path in row_sources.expand(names) for pair in row_sources.objects(path)):
            try:
                rows.append(_row(row, values))
            except (KeyError, jinja2.TemplateError) as error:
                errors.append({"row": place, "error": f"{type(error).__name__}: {error}"})
    return rows, errors


def _row(row: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a dataset as AutoSxS describes it; raise `KeyError` with the column that it lacks."""
    nested = row.get("id_columns")
    ids = {
        key: row[key] if key in row else (nested if isinstance(nested, dict) else {})[key]
        for key in values["id_columns"]
    }
    default = {"default_instruction": INSTRUCTIONS.get(task_name(values["task"]), "")}
    texts = {name: _text(how, {**row, **default}) for name, how in values["autorater_prompt_parameters"].items()}
    kept = {"id": " ".join(map(str, ids.values())), **ids}
    kept["inference_instruction"] = texts.get("inference_instruction", default["default_instruction"])
    kept["inference_context"] = texts["inference_context"]
    for side in SIDES:
        if values[f"model_{side}"] and not values[f"response_column_{side}"]:
            how = values[f"model_{side}_prompt_parameters"].get("prompt")
            kept[f"prompt_{side}"] = kept["inference_context"] if how is None else _text(how, {**row, **default})
        else:
            kept[f"response_{side}"] = str(row[_column(row, side, values[f"response_column_{side}"])])
    if column := values["human_preference_column"]:
        kept["human_preference"] = row.get(column)
    return kept


def _text(how: Mapping[str, str], row: Mapping[str, Any]) -> str:
    """Return what `{'column': NAME}` or `{'template': JINJA}` says of a row."""
    if "column" in how:
        return str(row[how["column"]])
    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)
    return environment.from_string(how["template"]).render(**row)


def _column(row: Mapping[str, Any], side: str, name: str) -> str:
    """Return the column of a side's answers: the one named, or the one that a row has under a usual name."""
    return name or next((f"{word}_{side}" for word in RESPONSES if f"{word}_{side}" in row), f"response_{side}")


def _require_ids(rows: Sequence[Mapping[str, Any]]) -> None:
    ids = [row["id"] for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UsageError(f"id_columns: {twice!r} stands for more than one row; name columns that tell rows apart")


def _answer(run: Path, side: str, rows: list[dict[str, Any]], values: Mapping[str, Any]) -> None:
    """Write the answers of a side; a model makes them where the rows have none."""
    if f"prompt_{side}" in rows[0]:
        settings = []
        for name, number in values[f"model_{side}_parameters"].items():
            if name not in SETTINGS:
                raise UsageError(f"model_{side}_parameters: {name}: is unknown; there are {', '.join(SETTINGS)}")
            whole = SETTINGS[name] != "sampler.temperature"  # Kubeflow passes every number as a float
            settings.append(f"{SETTINGS[name]}={int(number) if whole else number}")
            if name == "temperature":
                settings.append("infer.sampling_strategy=temperature_sampling")
        prompts = run / f"prompts-{side}.jsonl"
        files.write_jsonl(prompts, [{"id": row["id"], "input_text": row[f"prompt_{side}"]} for row in rows])
        model = str(object_store.local(values[f"model_{side}"]))
        path = component_work.infer(run, model, prompts, f"answers-{side}", settings)
        by_id = {answer["id"]: answer["prediction"] for answer in files.read_jsonl(path)}
        for row in rows:
            row[f"response_{side}"] = by_id[row["id"]]
    answers = [{"id": row["id"], "prompt": _prompt(row), "answer": row[f"response_{side}"]} for row in rows]
    files.write_jsonl(run / f"side-{side}.jsonl", answers)


def _prompt(row: Mapping[str, Any]) -> str:
    return (
        f"{row['inference_instruction']}{SEPARATOR}{row['inference_context']}"
        if row["inference_instruction"]
        else row["inference_context"]
    )


def _write_votes(run: Path, rows: Sequence[Mapping[str, Any]], column: str) -> None:
    """Write people's choices as judgments; a row without one is no vote, and other words are counted (`figures`)."""
    votes = [
        {
            "id": row["id"],
            "inference_instruction": "",
            "inference_context": _prompt(row),
            "response_a": row["response_a"],
            "response_b": row["response_b"],
            "choice": VOTES[row["human_preference"]],
            "confidence": 1.0,
            "judge": "people",
            "annotator": column,
        }
        for row in rows
        if row.get("human_preference") in VOTES
    ]
    if column and not votes:
        raise UsageError(f"human_preference_column: {column}: no row has A, B or tie there")
    if votes:
        files.write_jsonl(run / PEOPLE, votes)


def judge(run: str) -> str:
    """Have the judge choose in both orders; return the file of judgments in the columns of AutoSxS."""
    folder = object_store.local(run)
    values = files.read_json(folder / "parameters.json")
    autorater = str(values["experimental_args"].get("autorater", "")) or parameters.autorater(values["recipe"])
    people = ["--judge", f"people={folder / PEOPLE}"] if (folder / PEOPLE).exists() else []
    sides = [str(folder / f"side-{side}.jsonl") for side in SIDES]
    comparison = _compare(sides, values["task"], autorater, folder / "comparison-of-sides", people)
    rows = {row["id"]: row for row in files.read_jsonl(folder / ROWS)}
    judged: list[dict[str, Any]] = []
    unjudged: list[dict[str, Any]] = []
    for judgment in judgments.read(comparison.judgments):
        if judgment.judge == "people":
            continue
        row = rows[judgment.id]
        ids = {key: row[key] for key in values["id_columns"]}
        named = ("inference_instruction", "inference_context", "response_a", "response_b")
        line = ids | {name: row[name] for name in named}
        line |= {name: getattr(judgment, name) for name in ("choice", "confidence", "explanation", "judge")}
        (judged if judgment_outcomes.parsed(judgment) else unjudged).append(line | {"id_columns": ids})
    files.write_jsonl(folder / UNJUDGED, unjudged)
    path = judgments_of(run)
    if values["judgments_format"] == "json":
        files.write_json(path, judged)
    else:
        files.write_jsonl(path, judged)
    return object_store.kept(run, path)


def figures(run: str) -> dict[str, float]:
    """Return the figures of the judge under the names of AutoSxS, and ours with the limits of their intervals."""
    metrics = files.read_json(RunDirectory(object_store.local(run) / "comparison-of-sides").comparison.metrics)
    rows = files.read_jsonl(rows_of(run))
    name = next(name for name in metrics["judges"] if name != "people")
    judged = metrics["judges"][name]
    low, high = judged["interval"]
    shown: dict[str, float] = {
        "autosxs_model_a_win_rate": judged["win_rate"],
        "autosxs_model_b_win_rate": 1 - judged["win_rate"],
        "autosxs_model_a_win_rate_low": low,
        "autosxs_model_a_win_rate_high": high,
        "evaluation_count": judged["n"],
        "ties": judged["tie"],
        "unusable_rows": len(files.read_jsonl(errors_of(run))),
        "unreadable_votes": sum(row.get("human_preference") not in (None, *VOTES) for row in rows),
        "unreadable_verdicts": len(files.read_jsonl(unjudged_of(run))),
    }
    people = dict(metrics.get("against_people", {}).get(name, {}))
    limits = {of: pair for of, pair in people.pop("intervals", {}).items() if pair is not None}
    shown |= {of: number for of, number in people.items() if number is not None}
    shown |= {f"{of}_low": pair[0] for of, pair in limits.items()}
    return shown | {f"{of}_high": pair[1] for of, pair in limits.items()}


def rows_of(run: str) -> Path:
    """Return the rows that are compared."""
    return object_store.local(run) / ROWS


def errors_of(run: str) -> Path:
    """Return the rows that could not be used, with the reasons."""
    return object_store.local(run) / ERRORS


def unjudged_of(run: str) -> Path:
    """Return the rows of which the judge's verdict could not be read."""
    return object_store.local(run) / UNJUDGED


def judgments_of(run: str) -> Path:
    """Return the file of judgments in the columns of AutoSxS."""
    format = files.read_json(object_store.local(run) / "parameters.json")["judgments_format"]
    return object_store.local(run) / f"judgments.{format}"


def place_of_judgments(run: str) -> str:
    """Return where the file of judgments lies for other tasks."""
    return object_store.kept(run, judgments_of(run))
