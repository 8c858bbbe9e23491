"""The sections of a recipe that say who judges and what is shown."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from preferent.config.sections import Count, NotNegative, OneFile, Positive, Section, Share, nameable


class JudgeSection(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w-]*$")]
    """What its verdicts are called."""
    model: Annotated[str, Field(min_length=1), AfterValidator(nameable)]
    """The model's name at the endpoint; without `url` a causal model that judges here: a folder or hub id."""
    url: str | None = None
    """An OpenAI-compatible endpoint, as in http://localhost:8000/v1; null: the model runs here."""
    key_variable: str | None = None
    """The environment variable that holds the endpoint's key; the key itself is written nowhere."""
    task: Literal["summarization", "question_answering", "helpfulness"] = "helpfulness"
    """The rubric: the criteria of AutoSxS for the first two."""
    template: OneFile | None = None
    """A file with a rubric of your own, which replaces that of `task`."""
    explanation: bool = True
    """Ask for an explanation before the verdict. Without, a model that runs here writes nothing: the probabilities of
    its verdicts are read off."""
    votes: Count = 1
    """Verdicts asked for in each of the two orders."""
    temperature: Annotated[float, Field(ge=0.0)] | None = None
    """Of the judge's sampling; default: 0 for one vote, 1 for several."""
    log_probs: bool = True
    """Take the confidence from the probabilities of the verdict where they are given; else from the votes."""
    max_tokens: Count = 512
    """Longest reply, in tokens."""
    concurrency: Count = 8
    """Calls in flight at once."""
    timeout_seconds: Positive = 60.0
    """How long a call may take."""
    retries: NotNegative = 6
    """Further tries of a call that failed (429, 5xx, time-outs, cut streams), with growing pauses."""


RESERVED_JUDGES = ("judge", "reward", "people", "truth")
"""What judges are called that no recipe needs to describe."""


def _told_apart(judges: tuple[JudgeSection, ...]) -> tuple[JudgeSection, ...]:
    names = [judge.name for judge in judges]
    for number, name in enumerate(names):
        if name in RESERVED_JUDGES:
            raise ValueError(f"{name}: is what preferent calls a judge of its own; give judge {number} another name")
        if name in names[:number]:
            raise ValueError(f"judges {names.index(name)} and {number} are both called {name}")
    return judges


class CompareSection(Section):
    judge: Literal["independent", "reward"] = "independent"
    """Which reward model judges first: a second one trained on other preferences, or the one that was optimised."""
    headline: str | None = None
    """Whose verdict stands first: `judge`, `reward`, `people` (who have labelled), or a name of `judges`; default: as
    compare.judge says."""
    judge_share: Share = 0.25
    """Share of the training preferences, by prompt, that only the independent judge learns from."""
    judge_seed: int | None = None
    """Seed of the judge's head and data order; default: seed + 1."""
    judges: Annotated[tuple[JudgeSection, ...], AfterValidator(_told_apart)] = ()
    """Language models that judge besides."""
    micro_batch_tokens: Count | None = None
    """Padded tokens that a language model which judges here computes at once; changes memory and speed, not the
    result; default: by the device's memory."""


class ReportSection(Section):
    pairs: Count = 60
    """Examples shown side by side."""
