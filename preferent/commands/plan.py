"""The plan of a run: what it would do and need, without weights, tokenizer or network."""

import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from preferent import files
from preferent.commands import disk_estimate, memory_fit, time_estimate
from preferent.commands.cards import rank_lines, rank_memory
from preferent.commands.cards.hardware import ONE_GPU, Card, Machines
from preferent.commands.cards.rank_lines import Speed
from preferent.commands.time_estimate import Speeds, Work
from preferent.config import defaults, model_folder, model_reference, model_shape, stage_graph
from preferent.config.algorithms import algorithm
from preferent.config.defaults import reward_reference
from preferent.config.gcpc_names import resolve_model
from preferent.config.memory_estimate import ModelFacts
from preferent.config.model_shape import Shape
from preferent.config.recipe import Recipe
from preferent.config.sections import RewardPart, SftSection, paths
from preferent.config.stage_graph import Task
from preferent.data import datasets, prepare
from preferent.data.formats import row_reader
from preferent.data.formats.named_columns import NamedColumns
from preferent.data.tokenizer import Tokenizer
from preferent.data.tokenizer.chat_templates import ChatOptions
from preferent.runs import environment, progress
from preferent.runs.directory import DataDirectory, Part, RunDirectory

COUNTED = 1000
"""Preferences whose lengths are counted."""
SIZE = "the model's size, and so what lora_dim and learning_rate left open become"


def describe(
    recipe: Recipe,
    ignored: Sequence[str],
    out: Path,
    sizes: bool = False,
    commands: bool = False,
    memory: int | None = None,
    measure: Callable[[ModelFacts, Work], Speeds] | None = None,
    machines: Machines = ONE_GPU,
    card: Card | None = None,
) -> str:
    """Return the stages of a recipe with rows, steps and epochs, and what is ignored or not known yet.

    The data are read, checked and split in a temporary folder: counts are exact, and errors are those of the run. With
    `sizes` the text also has memory, tokens and disk, if the shapes of the models are known, and whether that fits this
    machine or a GPU of `memory` bytes, and what each of several GPUs of `machines` holds and sends. With `measure`,
    which returns the speeds of this machine, or a `card` it has the time, too. With `commands` it ends with the command
    of each stage.
    """
    tasks, memory = stage_graph.build(recipe), memory if card is None else card.memory
    model_reference.check(recipe)
    ChatOptions.of(recipe)
    sizes_known = parameters(recipe.large_model_reference), parameters(reward_reference(recipe))
    recipe, by_default = defaults.resolve(recipe, *sizes_known)
    with tempfile.TemporaryDirectory() as folder:
        prepare.main(recipe, {}, Path(folder), offline=True)
        counts = files.read_json(DataDirectory(Path(folder)).counts)
        needed = list(_sizes(recipe, Path(folder), memory, machines)) if sizes else []
        speed = rank_lines.speed(card, measure, machines)
        taken = list(_times(recipe, Path(folder), speed, machines, card is not None)) if speed else []
    where = "this machine, as fast as it is now" if card is None else "such cards, by their data sheet: nothing was run"
    sections = [
        ("models", _models(recipe)),
        ("data", _data(counts)),
        ("stages", _stages(recipe, counts["parts"])),
        ("defaults, where the recipe leaves the value open", _defaults(recipe, tasks, by_default)),
        (f"memory{machines.of_each}, tokens and disk (upper bounds)", needed),
        (f"time on {where}", taken),
        ("ignored: means something only on Google Cloud", ignored),
        ("not known yet", (*_hub(recipe), _lengths(recipe), *([] if None not in sizes_known else [SIZE]))),
        ("commands", [f"preferent {shlex.join(task.command(str(out)))}" for task in tasks if commands]),
    ]
    parts = [f"{title}\n" + "".join(f"  {line}\n" for line in lines) for title, lines in sections if lines]
    return f"run directory {out}\n\n" + "\n".join(parts).rstrip()


def _defaults(recipe: Recipe, tasks: Sequence[Task], by_default: Mapping[str, Any]) -> list[str]:
    """Return the values of the fields that the recipe leaves open and a stage reads; one section per line."""
    read = {field for task in tasks for field in stage_graph.fields(task.stage, recipe)}
    lines: dict[str, list[str]] = {}
    for key, value in by_default.items():
        section, _, name = key.rpartition(".")
        if key in read:
            lines.setdefault(section, []).append(f"{name} {value}")
    return [f"{section:<10}{', '.join(values)}" for section, values in lines.items()]


def _named(reference: str) -> str:
    resolved = resolve_model(reference)
    return reference if resolved == reference else f"{reference} = {resolved}"


def _models(recipe: Recipe) -> list[str]:
    tasks = {task.name: task for task in stage_graph.build(recipe)}
    lines = [f"to tune         {_named(recipe.large_model_reference)}"]
    if "reward" in tasks:
        lines.append(f"reward from     {_start(tasks['reward'])}")
    others = [] if stage_graph.direct(recipe) else [part for part in recipe.reward.parts if part.kind != "reward"]
    lines += [f"reward          {_other(part)}" for part in others]
    if stage_graph.direct(recipe):
        lines.append(f"reward          none: method is {recipe.method}")
    lines.append(f"reference       {_reference(recipe, tasks)}")
    return lines


def _reference(recipe: Recipe, tasks: Mapping[str, Task]) -> str:
    tuning = next(task for task in tasks.values() if Path(task.folder) == RunDirectory(Path()).policy.folder)
    if defaults.reference(recipe, tuning.stage) == "none":
        return "none: dpo.loss is reference_free" if tuning.stage == "dpo" else "none: kl_coeff is 0"
    return _start(tuning)


def _other(part: RewardPart) -> str:
    """Return a part of the reward that the run does not train."""
    return f"the function {part.source}" if part.kind == "function" else f"the model {_named(part.source)}"


def _start(task: Task) -> str:
    """Return the model that a task starts from: of a stage of this run, or the one that the recipe names."""
    return task.inputs["model"] if "model" in task.inputs else _named(task.outside["model"])


def _hub(recipe: Recipe) -> Iterator[str]:
    references = recipe.large_model_reference, reward_reference(recipe), *stage_graph.foreign(recipe).values()
    for reference in dict.fromkeys(references):
        if not Path(reference).exists():
            here = "; there is no such folder here" if resolve_model(reference) == reference else ""
            yield f"whether {resolve_model(reference)} is available on the hub{here}"


def _lengths(recipe: Recipe) -> str:
    """Say which command reads the tokenizer and counts what is truncated."""
    datasets_named = recipe.preference_dataset, recipe.prompt_dataset, recipe.eval_dataset
    named = [path for dataset in datasets_named if dataset is not None for path in paths(dataset)]
    command = shlex.join(["preferent", "data", "check", *named, "--model", recipe.large_model_reference])
    return f"token lengths, and so how much is truncated: {command}"


def _data(counts: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in ("preference", "prompt", "eval"):
        source = counts.get(name)
        if source is None:
            continue
        if "read" not in source:
            lines.append(f"{name:<15} {source['kept']:,} rows, from the preferences")
            continue
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in source["dropped"].items()) or "none"
        ties = f", {source['ties']:,} ties" if source.get("ties") else ""
        lines.append(
            f"{name:<15} {source['read']:,} rows ({source['format']}), {source['kept']:,} kept{ties}; "
            f"dropped: {dropped}"
        )
    for kind, rows in counts["parts"].items():
        lines.append(f"{kind + ' parts':<15} " + ", ".join(f"{part} {count:,}" for part, count in rows.items()))
    return lines


def _stages(recipe: Recipe, parts: Mapping[str, Mapping[str, int]]) -> list[str]:
    lines = []
    if recipe.sft is not None:
        lines.append(_sft(recipe.sft, recipe.data.named_columns))
    reward = "reward_model_train_steps", recipe.reward_model_train_steps, recipe.reward.batch_size
    if stage_graph.rewards(recipe):
        times = f", {recipe.reward.members} members" if recipe.reward.members > 1 else ""
        lines.append(_steps("reward", *reward, parts["preference"]["train"], "pairs") + times)
    if stage_graph.judged(recipe):
        lines.append(_steps("judge", *reward, parts["preference"]["judge"], "pairs"))
    lines.append(_tuning(recipe, parts))
    prompts = min(recipe.infer.max_prompts or parts["prompt"]["test"], parts["prompt"]["test"])
    models = "base, tuned, original" if recipe.sft is not None else "base, tuned"
    best = f", tuned the best of {recipe.infer.best_of}" if recipe.infer.best_of > 1 else ""
    lines.append(f"infer    {prompts:,} test prompts each: {models} ({recipe.infer.sampling_strategy}{best})")
    lines.append(f"compare  tuned against base, judged by: {_judge(recipe)}")
    lines.append(f"report   {min(recipe.report.pairs, prompts)} pairs shown")
    return lines


def _tuning(recipe: Recipe, parts: Mapping[str, Mapping[str, int]]) -> str:
    if stage_graph.direct(recipe):
        steps = "dpo.train_steps", recipe.dpo.train_steps, recipe.dpo.batch_size
        return _steps(recipe.method, *steps, parts["preference"]["train"], "pairs")
    if recipe.method == "rejection_sampling":
        section = recipe.rejection
        prompts = min(section.prompts, parts["prompt"]["train"])
        return (
            f"rejection {section.rounds:,} rounds of {section.samples:,} answers to {prompts:,} prompts, then "
            f"{section.train_steps:,} steps of {section.batch_size:,} on the best"
        )
    samples = algorithm(recipe.ppo).samples
    tuning = recipe.reinforcement_learning_train_steps, recipe.ppo.batch_size // samples
    line = _steps("ppo", "reinforcement_learning_train_steps", *tuning, parts["prompt"]["train"], "prompts")
    return line if samples == 1 else f"{line}, {samples} answers to each"


def _sft(section: SftSection, columns: NamedColumns) -> str:
    files = paths(section.dataset)
    if row_reader.detect(files, columns)[0] == "demonstration":
        reading = datasets.read(files, "demonstration", "auto", columns)
        return _steps("sft", "sft.train_steps", section.train_steps, section.batch_size, len(reading.records), "rows")
    texts = datasets.read(files, "text", "auto", columns)
    return (
        f"sft      {section.train_steps:,} steps of {section.batch_size:,} sequences packed from {texts.read:,} texts"
    )


def _steps(name: str, field: str, steps: int, batch: int, rows: int, unit: str) -> str:
    epochs = progress.epochs(field, steps, batch, rows, name)
    return f"{name:<8} {steps:,} steps of {batch:,} = {epochs:.1f} epochs of {rows:,} {unit}"


def _judge(recipe: Recipe) -> str:
    if stage_graph.judged(recipe):
        return "a second reward model, trained on other preferences"
    what = " + ".join("the reward model" if part.kind == "reward" else part.source for part in recipe.reward.parts)
    return f"{what} that was optimised (not independent)"


def _sizes(recipe: Recipe, folder: Path, memory: int | None, machines: Machines) -> Iterator[str]:
    """Yield memory by stage and part, whether it fits, tokens and disk, and what several ranks send; `folder` has the
    prepared data."""
    references = recipe.large_model_reference, reward_reference(recipe), *stage_graph.foreign(recipe).values()
    for reference in dict.fromkeys(name for name in references if shape(name) is None):
        yield f"not known: the shape of {_named(reference)}; give a folder with its config.json (of Llama's kind)"
    longest = longest_prompt(recipe, folder)
    facts = model_facts(recipe, folder, longest, memory is not None)
    if facts is None:
        return
    allowed = "" if longest else " (the limit in the recipe: there is no tokenizer here to count them)"
    yield (
        f"{facts.shape.policy:,} parameters, computed in {'bf16' if facts.bytes == 2 else 'fp32'}; prompts of at most "
        f"{facts.prompt} tokens{allowed}"
    )
    tasks = stage_graph.build(recipe)
    device, total = environment.device(recipe.device)
    if machines.shared:
        device, total = f"a rank's part of {device}", total // machines.ranks
    fits = rank_memory.fits(facts, tasks, memory or total, machines.ranks)
    yield from memory_fit.table([stage.need for stage in fits])
    yield from memory_fit.verdict(fits, device if memory is None else "as given")
    if machines.ranks > 1:
        yield from rank_lines.layouts(facts, fits, machines.ranks)
        yield from rank_lines.sent(facts, memory_fit.stages(tasks), work_of(recipe, folder), machines)
    if not stage_graph.direct(recipe):
        yield f"rollouts: {disk_estimate.rollout_tokens(facts):,} tokens, prompts included"
    stored = disk_estimate.disk(facts, [task.name for task in tasks])
    yield (
        "disk: "
        + ", ".join(f"{name} {memory_fit.size(count)}" for name, count in stored.items())
        + "; before what is freed"
    )


def _times(recipe: Recipe, folder: Path, speed: Speed, machines: Machines, elsewhere: bool) -> Iterator[str]:
    """Yield the time by stage, and for which lengths that is; `folder` has the prepared data."""
    facts = model_facts(recipe, folder, None, elsewhere)
    if facts is None or recipe.quantize is not None:
        why = "the shape of a model is" if facts is None else "the speed of quantize: nf4 is"
        yield f"not known: {why}"
        return
    if machines.shared:  # all cores do all of the work, as in one process
        machines = ONE_GPU
    if machines.ranks > 1 and machines.bandwidth is None:
        yield "not known: how fast the ranks send; give --link (inside a node) and --network (between nodes)"
        return
    work = work_of(recipe, folder)
    yield from time_estimate.lines(list(rank_lines.times(facts, stage_graph.build(recipe), work, machines, speed)))
    yield (
        f"for prompts of {work.prompt} tokens and answers of {work.answer}, the means of the data; models are read and "
        "written beside that"
    )


def work_of(recipe: Recipe, folder: Path) -> Work:
    """Return how long the first prompts and answers of the prepared preferences are, and the rows of data.

    Without the model's tokenizer, and for answers without preferences, it is the limit in the recipe.
    """
    source, prepared = Path(recipe.large_model_reference), DataDirectory(folder)
    rows = files.read_json(prepared.counts)["parts"]
    prompt, answer = recipe.prompt_sequence_length, recipe.target_sequence_length
    if not (source / "tokenizer.json").is_file():
        return Work([(prompt, answer)], rows)
    tokenizer = Tokenizer.load(source, ChatOptions.of(recipe))
    pairs = datasets.load_preferences(prepared.rows("preference", "train"))[:COUNTED] if "preference" in rows else []
    prompts = [pair.prompt for pair in pairs] or datasets.load_prompts(prepared.rows("prompt", "train"))[:COUNTED]
    encoded = tokenizer.encode_prompts(prompts, recipe.instruction, prompt)
    if not pairs:
        return Work([(max(1, len(one.ids)), answer) for one in encoded], rows)
    texts, ends = [one.text for one in encoded], [one.end for one in encoded]
    lengths = [
        (max(1, len(one.ids)), max(1, len(ids)))
        for candidates in ([pair.candidate_0 for pair in pairs], [pair.candidate_1 for pair in pairs])
        for one, (ids, _) in zip(encoded, tokenizer.encode_answers(texts, candidates, answer, ends), strict=True)
    ]
    return Work([lengths[i] for i in np.random.default_rng(0).permutation(len(lengths))], rows)


def model_facts(recipe: Recipe, folder: Path, longest: int | None, elsewhere: bool = False) -> ModelFacts | None:
    """Return the facts that the needs of a recipe depend on; None if the shape of a model is not known.

    `folder` has the prepared data, and `longest` is the length of its longest prompt, if that is known. The models are
    on this machine, or `elsewhere`: on a GPU unless the recipe says otherwise.
    """
    policy, reward = shape(recipe.large_model_reference), shape(reward_reference(recipe))
    if policy is None or reward is None:
        return None
    on_gpu = recipe.device != "cpu" and (elsewhere or environment.has_gpu())
    bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and (on_gpu or environment.cpu_has_bf16()))
    prompts = files.read_json(DataDirectory(folder).counts)["parts"]["prompt"]
    length = longest or recipe.prompt_sequence_length
    others = tuple(known for name in stage_graph.foreign(recipe).values() if (known := shape(name)) is not None)
    judges = [judge.model for judge in recipe.compare.judges if judge.url is None]
    judging = tuple(known for name in judges if (known := shape(name)) is not None)
    recipe, _ = defaults.resolve(recipe, policy.policy, reward.policy)
    return ModelFacts(
        recipe, policy, reward, 2 if bf16 else 4, length, prompts, _packs(recipe), on_gpu, others, judging
    )


def _packs(recipe: Recipe) -> bool:
    """Return whether supervised fine-tuning reads plain text, which it packs into sequences of one length."""
    if recipe.sft is None:
        return False
    return row_reader.detect(paths(recipe.sft.dataset), recipe.data.named_columns)[0] == "text"


def shape(reference: str) -> Shape | None:
    """Return the shape of a model from the config.json in its folder, or of Llama 2; else None."""
    path = Path(reference) / "config.json"
    return (
        Shape.of(model_folder.read_object(path))
        if path.is_file()
        else model_shape.LLAMA_2.get(resolve_model(reference))
    )


def parameters(reference: str) -> int | None:
    """Return the number of parameters of a model that is a folder or Llama 2; else None."""
    known = shape(reference)
    if known is not None:
        return known.policy
    return model_folder.counted(Path(reference)) if model_folder.has_weights(Path(reference)) else None


def longest_prompt(recipe: Recipe, folder: Path) -> int | None:
    """Return the tokens of the longest prompt of the prepared data; None without the model's tokenizer."""
    source = Path(recipe.large_model_reference)
    if not (source / "tokenizer.json").is_file():
        return None
    prepared = DataDirectory(folder)
    prompts = [prompt for part in get_args(Part) for prompt in datasets.load_prompts(prepared.rows("prompt", part))]
    tokenizer = Tokenizer.load(source, ChatOptions.of(recipe))
    encoded = tokenizer.encode_prompts(prompts, recipe.instruction, recipe.prompt_sequence_length)
    return max((len(prompt.ids) for prompt in encoded), default=None)
