"""The recipe: everything a run is asked to do, typed, checked and resolved once.

The flat core is GCPC's `parameter_values`; sections hold what GCPC hid. A field's description is its documentation:
the reference page and the messages are made from it.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from preferent.error import PlatformError, UsageError
from preferent.gcpc import CLOUD_ONLY, MODELS, resolve_model

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Paths = str | list[str]


def _local(value: Paths | None) -> Paths | None:
    for path in paths(value):
        if not path.strip():
            raise ValueError("a path is empty")
        if path.startswith("gs://"):
            raise ValueError(
                f"{path} is in Google Cloud Storage, which is not read from here; copy the files "
                f"(gcloud storage cp '{path}' data/) and name the copies: data/{Path(path).name}"
            )
    return value


Files = Annotated[Paths, AfterValidator(_local)]


class Section(BaseModel):
    """A part of the recipe: an unknown key is an error, a value keeps its type."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Data(Section):
    max_dropped: Share = 0.01
    """Share of unusable rows that `run` drops with a warning; above it the run stops with exit code 4."""
    format: Literal["auto", "gcpc", "trl", "hh", "openai"] = "auto"
    """Format of the preference rows; `auto` looks at the rows."""
    validation_share: Share = 0.05
    """Share of the prompts kept for validation (early stopping, selection, budget) where there is no `eval_dataset`."""
    test_share: Share = 0.05
    """Share of the prompts kept for the verdict and the reported accuracy."""


class Sft(Section):
    dataset: Files
    """Files to imitate: prompt/answer rows (`input_text`, `output_text`) or plain text (`text`)."""
    train_steps: Count = 1000
    """Optimizer steps; a step is one batch."""
    batch_size: Count = 64
    """Sequences in a batch."""
    sequence_length: Count | None = None
    """Tokens of a packed plain-text sequence; default: prompt_sequence_length + target_sequence_length."""
    lora_dim: NotNegative | None = None
    """LoRA rank; 0 trains every weight; default: 4 above 200M parameters, else 0. A LoRA result is merged."""
    learning_rate: Positive | None = None
    """Peak learning rate; default: 1e-4 with LoRA, 1e-5 full."""
    warmup_steps: NotNegative = 0
    """Steps over which the learning rate rises linearly from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up: constant, or to zero at the last step."""
    max_grad_norm: Positive = 1.0
    """Global gradient norm above which the gradient is scaled down."""
    validation_every: Count = 100
    """Steps between evaluations on validation rows."""
    micro_batch_tokens: Count = 4096
    """Padded tokens computed at once; changes memory and speed, not the result."""


class Reward(Section):
    lora_dim: NotNegative | None = None
    """LoRA rank of the reward model; 0 trains every weight; default: 4 above 200M parameters, else 0."""
    learning_rate: Positive | None = None
    """Learning rate before the multiplier; default: 1e-4 with LoRA, 1e-5 full."""
    batch_size: Count = 64
    """Pairs in a batch."""
    warmup_steps: NotNegative = 0
    """Steps over which the learning rate rises linearly from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up: constant, or to zero at the last step."""
    max_grad_norm: Positive = 1.0
    """Global gradient norm above which the gradient is scaled down."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay of AdamW."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Probability that a label is wrong: bounds the margin that the loss asks for; measured losses are without it."""
    validation_every: Count = 50
    """Steps between evaluations on validation pairs; the checkpoint of least validation loss is kept."""
    early_stopping_patience: Count | None = None
    """Stop after this many evaluations in a row without a better validation loss; default: never."""
    members: Count = 1
    """Reward models trained, alike but for the seed of head and data order; PPO gets the mean of their scores."""
    normalize: Literal["bias", "std", "none"] = "bias"
    """Before PPO: subtract the mean score of the reference's answers; `std` also divides by their deviation."""
    micro_batch_tokens: Count = 4096
    """Padded tokens computed at once; changes memory and speed, not the result."""


class Ppo(Section):
    batch_size: Count = 64
    """Rollouts in a step."""
    minibatches: Count = 1
    """Optimizer steps an epoch; each minibatch is made of whole micro-batches."""
    epochs: Count = 4
    """Passes over the rollouts of a step."""
    lora_dim: NotNegative | None = None
    """LoRA rank of the policy; 0 trains every weight; default: 1 above 200M parameters, else 0."""
    learning_rate: Positive | None = None
    """Policy learning rate before the multiplier; default: 1e-4 with LoRA, 1e-6 full."""
    critic_learning_rate: Positive | None = None
    """Critic learning rate before the multiplier; default: 1e-4 with LoRA, 5e-6 full."""
    warmup_steps: NotNegative = 0
    """Steps over which both learning rates rise linearly from zero."""
    schedule: Literal["constant", "linear"] = "constant"
    """How the learning rates go on after the warm-up: constant, or linearly to zero at the last step."""
    max_grad_norm: Positive = 1.0
    """Global gradient norm above which the gradient is scaled down, policy and critic each."""
    clip_range: Positive = 0.2
    """Epsilon of the clipped policy ratio."""
    value_clip_range: Positive | None = 0.2
    """How far a value may move from its rollout value before the loss is clipped; null: no clipping."""
    vf_coeff: Positive = 0.1
    """Weight of the value loss."""
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Discount."""
    gae_lambda: Annotated[float, Field(ge=0.0, le=1.0)] = 0.95
    """Lambda of generalized advantage estimation."""
    missing_eos_score: float | None = -1.0
    """Replaces the normalised score of an answer that did not end; null: off."""
    kl_target: Positive | None = None
    """Nats an answer at which the adaptive controller holds the KL, moving kl_coeff (Ziegler 2019); null: fixed."""
    kl_horizon: Count = 10000
    """Episodes over which the adaptive controller acts."""
    kl_budget: Positive | None = None
    """Nats an answer on validation prompts above which training stops."""
    reward: str | None = None
    """`module:function` from (prompts, answers), two lists of text, to a list of scores; replaces the reward model."""
    validation_every: Count = 25
    """Steps between evaluations on validation prompts (selection, budget, early stopping)."""
    validation_prompts: Count = 256
    """Validation prompts used, at most."""
    early_stopping_patience: Count | None = None
    """Stop after this many evaluations in a row without a better score - kl_coeff * KL; default: never."""
    normalize_prompts: Count = 256
    """Training prompts whose reference answers set the reward's bias."""
    micro_batch_tokens: Count = 4096
    """Padded tokens computed at once; changes memory and speed, not the result."""


class Sampler(Section):
    temperature: Positive = 1.0
    """Logits are divided by it in policy, old policy and reference."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Keep the fewest tokens that hold this probability; 1 is off. Rollouts always sample the full distribution."""
    top_k: NotNegative = 0
    """Keep this many tokens; 0 is off. Rollouts always sample the full distribution."""
    rows: Count = 256
    """Answers decoded at once."""


class Infer(Section):
    sampling_strategy: Literal["greedy", "temperature_sampling"] = "greedy"
    """How the verdict's answers are made."""
    max_prompts: Count | None = 1000
    """Test prompts answered, at most; null: all."""


class Compare(Section):
    judge: Literal["independent", "reward"] = "independent"
    """Who gives the headline verdict: a second reward model trained on other preferences, or the one PPO optimised."""
    judge_share: Share = 0.25
    """Share of the training preferences, by prompt, that only the independent judge learns from."""
    judge_seed: int | None = None
    """Seed of the judge's head and data order; default: seed + 1."""


class Report(Section):
    pairs: Count = 60
    """Examples shown side by side."""


class Recipe(Section):
    large_model_reference: str
    """The model to tune: a GCPC alias, a hub id with optional @revision, or a local path."""
    reward_model_reference: str | None = None
    """What the reward model starts from; default: GCPC's pairing, else the model to tune."""
    preference_dataset: Files | None = None
    """Files of preferences; paths, globs, or `hf://` data sets."""
    prompt_dataset: Files | None = None
    """Files of prompts; default: the prompts of the preferences."""
    eval_dataset: Files | None = None
    """Files of held-out prompts or preferences; default: shares split off by prompt."""
    instruction: str | None = None
    """Put before every prompt (three newlines between), or as system text in a conversation."""
    prompt_sequence_length: Annotated[int, Field(ge=1, le=131072)] = 512
    """Tokens of a prompt; a longer one loses its beginning, never instruction or tail."""
    target_sequence_length: Annotated[int, Field(ge=1, le=131072)] = 64
    """Tokens of an answer."""
    reward_model_train_steps: Count = 1000
    """Reward model steps; a step is one batch of pairs."""
    reinforcement_learning_train_steps: Count = 1000
    """PPO steps; a step is one batch of rollouts."""
    reward_model_learning_rate_multiplier: Positive = 1.0
    """Times reward.learning_rate."""
    reinforcement_learning_rate_multiplier: Positive = 1.0
    """Times ppo.learning_rate and ppo.critic_learning_rate."""
    kl_coeff: Annotated[float, Field(ge=0.0)] = 0.1
    """Weight of the KL penalty, in score units a nat; 0 loads no reference."""
    seed: NotNegative = 0
    """All randomness is a function of it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the models; trained weights are kept in fp32. auto: bf16 where the processor has it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models run."""
    threads: Count | None = None
    """CPU threads; default: one a core."""
    deterministic: bool = False
    """On a GPU: only kernels that give the same bits every time."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    trust_remote_code: bool = False
    """Run Python code that a model repository ships."""
    checkpoint_every: Count = 100
    """Steps between checkpoints."""
    keep_checkpoints: Count = 2
    """Checkpoints kept besides the best."""
    data: Data = Data()
    sft: Sft | None = None
    reward: Reward = Reward()
    ppo: Ppo = Ppo()
    sampler: Sampler = Sampler()
    infer: Infer = Infer()
    compare: Compare = Compare()
    report: Report = Report()

    @field_validator("large_model_reference", "reward_model_reference")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("is empty")
        if value is not None:
            try:
                resolve_model(value)
            except UsageError as error:
                raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _budget_needs_reference(self) -> "Recipe":
        if self.ppo.minibatches > self.ppo.batch_size:
            raise ValueError("ppo.minibatches is larger than ppo.batch_size")
        if self.ppo.kl_target is not None and self.kl_coeff == 0:
            raise ValueError("ppo.kl_target moves kl_coeff, which must start above 0")
        if self.data.validation_share + self.data.test_share >= 1:
            raise ValueError("data.validation_share and data.test_share leave nothing to train on")
        return self


def names(section: type[Section] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted key that a recipe may hold."""
    for name, field in section.model_fields.items():
        yield prefix + name
        inner = inner_section(field)
        if inner is not None:
            yield from names(inner, f"{prefix}{name}.")


def inner_section(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, optional or not."""
    for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _problems(error: ValidationError, place: str) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"] if not str(part).startswith(("constrained", "function")))
        key = key.removesuffix(".str").removesuffix(".list[str]")
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, list(names()), n=1, cutoff=0.5)
            near = near or difflib.get_close_matches(key.split(".")[-1], [n.split(".")[-1] for n in names()], n=1)
            lines.append(f"{place}: unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        elif item["type"] == "missing":
            lines.append(f"{place}: '{key}' is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = "" if not key or isinstance(item["input"], dict) else f" (given: {item['input']!r})"
            lines.append(f"{place}: {key + ': ' if key else ''}{message}{shown}")
    return "\n".join(dict.fromkeys(lines))


def parse(values: Any, place: str = "recipe") -> tuple[Recipe, list[str]]:
    """The recipe that a dictionary describes, and the Google Cloud keys in it that mean nothing here."""
    if not isinstance(values, dict):
        given = "nothing" if values is None else f"a {type(values).__name__}"
        raise UsageError(f"{place}: a recipe is a mapping of keys to values, as in kl_coeff: 0.1; this is {given}")
    ignored = [key for key in values if key in CLOUD_ONLY]
    try:
        return Recipe.model_validate({k: v for k, v in values.items() if k not in CLOUD_ONLY}), ignored
    except ValidationError as error:
        raise UsageError(_problems(error, place)) from None


def assign(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with each `dotted.key=yaml` of `overrides` put in."""
    result = dict(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"--set {override}: write it as key=value, for example --set ppo.epochs=2")
        *sections, last = key.strip().split(".")
        target = result
        for section in sections:
            inner = target.get(section)
            target[section] = dict(inner) if isinstance(inner, dict) else {}
            target = target[section]
        try:
            target[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"--set {override}: the value is not YAML; put a text in quotes") from None
    return result


def read(path: Path) -> Any:
    """What a YAML file says; errors name the file and the line."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise PlatformError(f"{path}: no such recipe; docs/recipe.md shows how to write one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlatformError(f"{path}: cannot be read as a recipe: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError(f"{place}: not YAML: {getattr(error, 'problem', None) or error}") from None


def load(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """The recipe in a YAML file with `--set` overrides, and the Google Cloud keys in it that are ignored."""
    values = read(path)
    return parse(assign(values, overrides) if isinstance(values, dict) else values, str(path))


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def reward_reference(recipe: Recipe) -> str:
    """The model that the reward model starts from: the recipe's, GCPC's pairing, or the model to tune."""
    if recipe.reward_model_reference is not None:
        return recipe.reward_model_reference
    name = recipe.large_model_reference.lower().replace("_", "-")
    is_alias = name in MODELS and not Path(recipe.large_model_reference).exists()
    return MODELS[name][1] if is_alias else recipe.large_model_reference


def paths(value: Paths | None) -> list[str]:
    """A field that holds one path or several, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def pick(recipe: Recipe, *keys: str) -> dict[str, Any]:
    """The named fields, dotted fields and sections of a recipe as plain values: what a stage depends on."""
    values = recipe.model_dump(mode="json")
    return {key: _reach(values, key) for key in keys}


def _reach(values: dict[str, Any], key: str) -> Any:
    """The value under a dotted key; None below a section that is off."""
    found: Any = values
    for part in key.split("."):
        found = None if found is None else found[part]
    return found
