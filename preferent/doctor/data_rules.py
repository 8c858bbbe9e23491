"""Rules about the data: dropped, repeated, contradictory and cut rows, and too few of them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from preferent.doctor.findings import RELATIVE, SICK, SUSPICIOUS, Evidence, Finding
from preferent.doctor.run_history import RunHistory

COUNTS = RELATIVE.counts.as_posix()
DROPPED = 0.05
"""Five times what `data.max_dropped` allows by default."""
DUPLICATED = 0.05
"""A duplicate counts twice and hides how few rows there are; one in twenty is unlikely to be an accident."""
CONTRADICTED = 0.15
"""People disagree on 23 to 27 % of pairs (Stiennon et al. 2020, Ouyang et al. 2022). If every pair were labelled twice,
one row in eight would be a contradiction."""
TIES = 0.5
"""A tie is not trained on; 39 % of the votes of Chatbot Arena are ties (llmfao)."""
FEW_PAIRS = 2000
"""With fewer pairs a reward model is hardly better than chance (Gao et al. 2022)."""
FEW_VALIDATION_PAIRS = 100
"""The standard error of an accuracy is then up to 5 points."""
CUT = 0.1
"""A cut answer has lost its end, at which the score is read."""
FEW_PROMPTS = 256
"""The bias of the score is measured on as many; they are four batches of the default size."""
FEW_VALIDATION_PROMPTS = 64
"""The policy is selected by the mean score on them; its standard error is an eighth of the scores' deviation."""
PASSES = 50
"""PPO on TL;DR saw each of 116,722 prompts 8.6 times (Huang et al. 2024)."""


def dropped_rows(history: RunHistory) -> Iterator[Finding]:
    for name, counts in _datasets(history.counts):
        dropped = sum(counts.get("dropped", {}).values())
        if dropped > DROPPED * counts["read"]:
            evidence = Evidence(COUNTS, f"{name}.dropped", dropped), Evidence(COUNTS, f"{name}.read", counts["read"])
            yield Finding(
                "dropped-rows",
                SUSPICIOUS,
                "Many rows could not be used; the remaining rows may differ from them in kind.",
                evidence,
                "Read data/dropped.jsonl, which names file, line and reason, and correct the rows.",
            )


def duplicated_data(history: RunHistory) -> Iterator[Finding]:
    for name, evidence in _counted(history.counts, "duplicates", DUPLICATED):
        yield Finding(
            "duplicated-data",
            SUSPICIOUS,
            f"Many rows of the {name} data repeat an earlier row.",
            evidence,
            "Remove repeated rows; if they are votes of several people, keep the choice of the majority once.",
        )


def contradictory_pairs(history: RunHistory) -> Iterator[Finding]:
    for _, evidence in _counted(history.counts, "contradictory", CONTRADICTED):
        yield Finding(
            "contradictory-pairs",
            SUSPICIOUS,
            "In too many pairs each answer was chosen once: people disagree less often than that.",
            evidence,
            "Check that `choice` counts from 0 everywhere, and that no source has it reversed.",
        )


def many_ties(history: RunHistory) -> Iterator[Finding]:
    for _, evidence in _counted(history.counts, "ties", TIES):
        yield Finding(
            "many-ties",
            SUSPICIOUS,
            "Most preferences are ties, and the reward model does not learn from ties.",
            evidence,
            "Collect pairs of answers that differ more, or ask people to choose whenever they can.",
        )


def few_pairs(history: RunHistory) -> Iterator[Finding]:
    evidence = _pairs(history, "train", lambda counts: counts["pairs"] < FEW_PAIRS)
    if evidence:
        yield Finding(
            "few-pairs",
            SUSPICIOUS,
            f"A model learned from fewer than {FEW_PAIRS} pairs; with so few it is hardly better than chance.",
            evidence,
            "Collect more preferences; for the judge, raise compare.judge_share.",
        )


def few_validation_pairs(history: RunHistory) -> Iterator[Finding]:
    evidence = _pairs(history, "validation", lambda counts: counts["pairs"] < FEW_VALIDATION_PAIRS)
    if evidence:
        yield Finding(
            "few-validation-pairs",
            SUSPICIOUS,
            "A checkpoint was selected on so few pairs that the choice is random.",
            evidence,
            "Raise data.validation_share, or set eval_dataset.",
        )


def truncated_pairs(history: RunHistory) -> Iterator[Finding]:
    evidence = _pairs(history, "train", lambda counts: counts["truncated"] > CUT * counts["pairs"], "truncated")
    if evidence:
        yield Finding(
            "truncated-pairs",
            SUSPICIOUS,
            "Many prompts or answers were too long and were cut: the model did not see the texts that people saw.",
            evidence,
            "Raise prompt_sequence_length or target_sequence_length; `preferent data check --model` counts tokens.",
        )


def few_prompts(history: RunHistory) -> Iterator[Finding]:
    prompts = _prompts(history, "train")
    if prompts is not None and prompts < FEW_PROMPTS and not history.direct:
        yield Finding(
            "few-prompts",
            SUSPICIOUS,
            "There are so few prompts that the policy memorises them.",
            (Evidence(COUNTS, "parts.prompt.train", prompts),),
            "Add prompts; a prompt needs no preference.",
        )


def many_passes(history: RunHistory) -> Iterator[Finding]:
    prompts, batch = _prompts(history, "train"), history.fields("policy").get("ppo.batch_size")
    steps = history.curve("policy", "reward").steps
    if prompts and batch and len(steps) and (passes := batch * int(steps[-1]) / prompts) > PASSES:
        last = int(steps[-1])
        evidence = (
            Evidence(COUNTS, "parts.prompt.train", prompts),
            Evidence(RELATIVE.policy.metrics.as_posix(), "answers to each prompt", passes, (1, last)),
        )
        yield Finding(
            "many-passes",
            SUSPICIOUS,
            f"PPO went over the same prompts more than {PASSES} times.",
            evidence,
            "Add prompts, or lower reinforcement_learning_train_steps.",
        )


def few_validation_prompts(history: RunHistory) -> Iterator[Finding]:
    prompts = _prompts(history, "validation")
    if prompts is not None and prompts < FEW_VALIDATION_PROMPTS and not history.direct:
        yield Finding(
            "few-validation-prompts",
            SUSPICIOUS,
            "The policy's checkpoint was selected on so few prompts that the choice is random.",
            (Evidence(COUNTS, "parts.prompt.validation", prompts),),
            "Raise data.validation_share, or set eval_dataset.",
        )


def template_mismatch(history: RunHistory) -> Iterator[Finding]:
    files = history.tokenizers
    if history.chat and len(files) == 2 and files["policy"].template != files["reward"].template:
        yield Finding(
            "template-mismatch",
            SICK,
            "The prompts are conversations, and policy and reward model render them with different chat templates: the "
            "reward model scores texts in a form that it never learned.",
            tuple(_template(name, tokenizer.template) for name, tokenizer in files.items()),
            "Start both from one model, or copy the policy's chat_template.jinja into the folder of the model that the "
            "reward model starts from.",
        )


def tokenizers_differ(history: RunHistory) -> Iterator[Finding]:
    files = history.tokenizers
    if len(files) < 2:
        return
    eos = {name: tokenizer.names.get("eos", "none") for name, tokenizer in files.items()}
    if files["policy"].backend != files["reward"].backend or eos["policy"] != eos["reward"]:
        yield Finding(
            "tokenizers-differ",
            SUSPICIOUS,
            "Policy and reward model have different tokenizers: answers are scored by their text instead of their "
            "tokens, and the critic starts from the policy instead of the reward model.",
            tuple(_eos(name, token) for name, token in eos.items()),
            "Start both from one model, unless the reward model is from another family on purpose.",
        )


def _datasets(counts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return the data sets that were read, by name."""
    for name in ("preference", "prompt", "eval"):
        if counts.get(name, {}).get("read"):
            yield name, counts[name]


def _counted(counts: Mapping[str, Any], key: str, share: float) -> Iterator[tuple[str, tuple[Evidence, ...]]]:
    """Return the data sets of which more than a share of the kept rows are counted under `key`."""
    for name, dataset in _datasets(counts):
        if dataset.get(key, 0) > share * dataset["kept"]:
            yield name, tuple(Evidence(COUNTS, f"{name}.{count}", dataset[count]) for count in (key, "kept"))


def _pairs(
    history: RunHistory, part: str, bad: Callable[[Mapping[str, Any]], bool], *more: str
) -> tuple[Evidence, ...]:
    """Return the counts of those that learn from pairs, scorers or policy, and whose pairs of a part are bad."""
    learners = (*history.qualities, "policy")
    counted = {name: history.facts(name).get("counts", {}).get(part) for name in learners}
    return tuple(
        Evidence(RELATIVE.stage(name).description.as_posix(), f"{part} {figure}", counts[figure])
        for name, counts in counted.items()
        if counts and bad(counts)
        for figure in (*more, "pairs")
    )


def _prompts(history: RunHistory, part: str) -> int | None:
    count: int | None = history.counts.get("parts", {}).get("prompt", {}).get(part)
    return count


def _template(name: str, template: str | None) -> Evidence:
    shown = "none" if template is None else f"of {len(template)} characters, beginning {template[:40]!r}"
    return Evidence(RELATIVE.stage(name).model.as_posix(), "chat template", shown)


def _eos(name: str, token: str) -> Evidence:
    return Evidence((RELATIVE.stage(name).model / "tokenizer_config.json").as_posix(), "eos_token", token)


RULES = (
    dropped_rows,
    duplicated_data,
    contradictory_pairs,
    many_ties,
    few_pairs,
    few_validation_pairs,
    truncated_pairs,
    few_prompts,
    many_passes,
    few_validation_prompts,
    template_mismatch,
    tokenizers_differ,
)
