"""The recipe: everything a run is asked to do, typed, checked and resolved once.

The flat core is GCPC's `parameter_values`; sections hold what GCPC hid. A field's description is its documentation:
the reference page and the messages are made from it.
"""

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from preferent.config import recipe_yaml, run_schema
from preferent.config.algorithms import GROUPED, algorithm
from preferent.config.comparison_sections import RESERVED_JUDGES, CompareSection, ReportSection
from preferent.config.gcpc_names import CLOUD_ONLY, resolve_model
from preferent.config.sections import (
    CHAT_ARGUMENTS,
    ONE,
    SEVERAL,
    Count,
    DataFiles,
    DataSection,
    DPOSection,
    InferSection,
    NotNegative,
    OneFile,
    Positive,
    PPOSection,
    RejectionSection,
    RewardSection,
    SamplerSection,
    Section,
    SftSection,
    nameable,
)
from preferent.errors import PlatformError, UsageError

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 120
MOST_PROBLEMS = 20


class Recipe(Section):
    large_model_reference: str
    """The model to tune: a name such as llama-2-7b, a hub id with optional @revision, or a local path."""
    reward_model_reference: str | None = None
    """What the reward model starts from; default: the model that goes with such a name, else the model to tune."""
    preference_dataset: DataFiles | None = None
    """Files of preferences; paths, globs, `hf://` data sets, or `gs://`, `s3://` and `https://` addresses."""
    prompt_dataset: DataFiles | None = None
    """Files of prompts; default: the prompts of the preferences."""
    eval_dataset: DataFiles | None = None
    """Files of held-out prompts or preferences; default: shares split off by prompt."""
    instruction: str | None = None
    """Put before every prompt (three newlines between), or as system text in a conversation."""
    chat_template: OneFile | None = None
    """A file with a Jinja chat template; default: the template that the model brings along. It is saved with the models
    that the run makes."""
    chat_template_kwargs: dict[str, JsonValue] | None = None
    """Variables for the chat template, as in enable_thinking: false."""
    prompt_sequence_length: Annotated[int, Field(ge=1, le=131072)] = 512
    """Tokens of a prompt; a longer one loses its beginning, never instruction or tail."""
    target_sequence_length: Annotated[int, Field(ge=1, le=131072)] = 64
    """Tokens of an answer."""
    reward_model_train_steps: Count = 1000
    """Reward model steps; a step is one batch of pairs."""
    reinforcement_learning_train_steps: Count = 1000
    """Steps of method reinforcement_learning; a step is one batch of rollouts."""
    reward_model_learning_rate_multiplier: Positive = 1.0
    """Times reward.learning_rate."""
    reinforcement_learning_rate_multiplier: Positive = 1.0
    """Times ppo.learning_rate and ppo.critic_learning_rate."""
    method: Literal["reinforcement_learning", "dpo", "kto", "rejection_sampling"] = "reinforcement_learning"
    """How the policy is tuned: against the reward (section ppo), on the preferences themselves (section dpo), or by
    imitating the best of several answers (section rejection)."""
    kl_coeff: Annotated[float, Field(ge=0.0)] = 0.1
    """Weight of the KL penalty, in score units a nat; 0 loads no reference. beta of DPO and KTO."""
    continues: tuple[str, ...] = ()
    """Runs that this one continues, the first round first; `run --with-labels` fills it in. What they held out stays
    held out, and their policies stand beside this one's in comparison and report."""
    seed: NotNegative = 0
    """All randomness is a function of it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the models; trained weights are kept in fp32. auto: bf16 where the processor has it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the models run. auto: on a CUDA GPU if torch finds one, else on the CPU."""
    threads: Count | None = None
    """CPU threads of a process; default: one a core, shared out among the processes."""
    processes: Count | Literal["auto"] = 1
    """Processes that compute a stage together on this machine, each on a GPU of its own where there are as many; the
    result is the same but for last bits. auto: as many as there are GPUs, else 1."""
    shard: Literal["auto", "none", "full"] = "auto"
    """Several processes cut models whose weights all learn, and the frozen ones beside them, into shards, one a process
    (FSDP2); adapters and the model below them stay whole. full: that model is cut, too. none: all weights are whole."""
    deterministic: bool = False
    """On a GPU: only kernels that give the same bits every time."""
    quantize: Literal["nf4"] | None = None
    """Hold frozen weights of linear layers in 4 bits (QLoRA, Dettmers 2023) wherever the run loads a model: a quarter
    of their memory in bf16. Only adapters train: every lora_dim must be above 0. Needs `preferent[bits]`; null: off."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW; adamw8bit holds its moments in 8 bits (Dettmers 2022), 2 bytes a weight instead of 8, except those of
    tensors below 4,096 weights. Needs `preferent[bits]`."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    trust_remote_code: bool = False
    """Run Python code that a model repository ships."""
    checkpoint_every: Count = 100
    """Steps between checkpoints."""
    keep_checkpoints: Count = 2
    """Checkpoints kept besides the best."""
    data: DataSection = DataSection()
    sft: SftSection | None = None
    reward: RewardSection = RewardSection()
    ppo: PPOSection = PPOSection()
    dpo: DPOSection = DPOSection()
    rejection: RejectionSection = RejectionSection()
    sampler: SamplerSection = SamplerSection()
    infer: InferSection = InferSection()
    compare: CompareSection = CompareSection()
    report: ReportSection = ReportSection()

    @field_validator("large_model_reference", "reward_model_reference")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("is empty")
        if value is not None:
            nameable(value)
            try:
                resolve_model(value)
            except UsageError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("chat_template_kwargs")
    @classmethod
    def _no_argument(cls, value: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        for name in CHAT_ARGUMENTS.intersection(value or {}):
            raise ValueError(f"{name} is an argument of apply_chat_template, no variable of a template; leave it out")
        return value

    @model_validator(mode="after")
    def _tuning_by_reward(self) -> "Recipe":
        if self.ppo.minibatches > self.ppo.batch_size:
            raise ValueError("ppo.minibatches is larger than ppo.batch_size")
        samples = algorithm(self.ppo).samples
        if self.ppo.batch_size % samples:
            raise ValueError(
                f"ppo.batch_size ({self.ppo.batch_size}) is no multiple of the {samples} answers to a prompt"
            )
        if self.ppo.algorithm in GROUPED and samples < 2:
            raise ValueError(
                f"ppo.samples_per_prompt: {self.ppo.algorithm} holds an answer against others to its prompt"
            )
        if self.ppo.ptx_coeff and self.ppo.ptx_dataset is None and self.sft is None:
            raise ValueError("ppo.ptx_coeff: name ppo.ptx_dataset, the text that it weighs")
        if self.ppo.kl_target is not None and self.kl_coeff == 0:
            raise ValueError("ppo.kl_target moves kl_coeff, which must start above 0")
        if self.reward.overlong_tokens is not None and self.reward.overlong_tokens > self.target_sequence_length:
            raise ValueError("reward.overlong_tokens is larger than target_sequence_length")
        return self

    @model_validator(mode="after")
    def _what_does_not_go_together(self) -> "Recipe":
        if self.reward.combine in ("worst", "variance") and self.reward.normalize == "none":
            raise ValueError(
                f"reward.combine: {self.reward.combine} compares members, each of which must be normalised: "
                "set reward.normalize to bias or std"
            )
        if self.infer.best_of > 1 and self.method in ("dpo", "kto"):
            raise ValueError(f"infer.best_of: method {self.method} has no reward to choose by")
        if self.infer.best_of > 1 and self.infer.sampling_strategy == "greedy":
            raise ValueError("infer.best_of: needs infer.sampling_strategy: temperature_sampling, else all are equal")
        if self.shard == "full" and self.quantize:
            raise ValueError("shard: full cuts frozen weights, and those of quantize cannot be cut: drop one of them")
        if self.data.validation_share + self.data.test_share >= 1:
            raise ValueError("data.validation_share and data.test_share leave nothing to train on")
        return self

    @model_validator(mode="after")
    def _direct_methods(self) -> "Recipe":
        if self.method not in ("dpo", "kto"):
            return self
        dpo, kto = self.dpo, self.method == "kto"
        if self.kl_coeff == 0:
            raise ValueError(f"kl_coeff is beta of method: {self.method}, which must be above 0; 0.1 is the default")
        if kto and dpo.loss != "sigmoid":
            raise ValueError(f"dpo.loss: {dpo.loss} is of method: dpo; method: kto has a loss of its own")
        if dpo.label_smoothing and (kto or dpo.loss != "sigmoid"):
            raise ValueError("dpo.label_smoothing is of method: dpo with dpo.loss: sigmoid; drop it")
        if dpo.target_margin and dpo.loss != "reference_free":
            raise ValueError("dpo.target_margin is of method: dpo with dpo.loss: reference_free; drop it")
        if not kto and (dpo.desirable_weight != 1 or dpo.undesirable_weight != 1):
            raise ValueError("dpo.desirable_weight and dpo.undesirable_weight are of method: kto; drop them")
        if self.reward.sources is not None:
            raise ValueError(
                f"reward.sources is a reward to optimise; method: {self.method} has none: drop one of them"
            )
        if self.compare.judge == "reward":
            raise ValueError(f"compare.judge: reward judges by the reward that method: {self.method} does not have")
        return self

    @model_validator(mode="after")
    def _headline(self) -> "Recipe":
        known = [name for name in RESERVED_JUDGES if name != "truth"] + [judge.name for judge in self.compare.judges]
        if self.compare.headline is not None and self.compare.headline not in known:
            raise ValueError(f"compare.headline: {self.compare.headline} is no judge; there are {', '.join(known)}")
        return self


def names(section: type[Section] = Recipe, prefix: str = "") -> Iterator[str]:
    """Return every dotted key that a recipe may hold."""
    for name, field in section.model_fields.items():
        yield prefix + name
        inner = inner_section(field)
        if inner is not None:
            yield from names(inner, f"{prefix}{name}.")


def inner_section(field: FieldInfo) -> type[Section] | None:
    """Return the section that a field holds, optional or not; none where it holds a list of them."""
    return None if get_origin(field.annotation) is tuple else _section(field)


def listed_section(field: FieldInfo) -> type[Section] | None:
    """Return the section of which a field holds a list."""
    return next((kind for kind in _listed(field.annotation) if issubclass(kind, Section)), None)


def _listed(annotation: Any) -> Iterator[type]:
    """Return the types of which an annotation, or one of its alternatives, is a list."""
    if get_origin(annotation) in (list, tuple):
        yield from (kind for kind in get_args(annotation) if isinstance(kind, type))
    else:
        for inner in get_args(annotation):
            yield from _listed(inner)


def _section(field: FieldInfo) -> type[Section] | None:
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _known(key: str) -> list[str]:
    """Return the keys that may stand where this one does: those of an entry where it is inside a list, else all."""
    section: type[Section] = Recipe
    parts = key.split(".")
    for place, part in enumerate(parts[:-1]):
        field = section.model_fields.get(part)
        if field is None:
            break
        if (listed := listed_section(field)) is not None:
            return [".".join([*parts[: place + 2], name]) for name in listed.model_fields]
        section = inner_section(field) or Section
    return list(names())


def _problems(error: ValidationError, place: str) -> str:
    lines = []
    for item in error.errors():
        parts = [str(part) for part in item["loc"] if part not in (ONE, SEVERAL)]
        key = ".".join(part for part in parts if not part.startswith(("constrained", "function")))
        key = key.removesuffix(".str").removesuffix(".list[str]")
        if item["type"] == "extra_forbidden":
            lines.append(f"{place}: {_unknown(key)}")
        elif item["type"] == "missing":
            lines.append(f"{place}: '{key}' is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            hidden = not key or isinstance(item["input"], dict) or "://" in str(item["input"])  # may hold a secret
            shown = "" if hidden else f" (given: {_shown.repr(item['input'])})"
            lines.append(f"{place}: {key + ': ' if key else ''}{message[:500]}{shown}")
    lines = list(dict.fromkeys(lines))
    more = [f"{place}: and {len(lines) - MOST_PROBLEMS} more"] if len(lines) > MOST_PROBLEMS else []
    return "\n".join([*lines[:MOST_PROBLEMS], *more])


def _unknown(key: str) -> str:
    """Say what to write instead of a key that a recipe does not have."""
    if len(key) > 200:
        return f"unknown key '{key[:60]}…'"
    if key in run_schema.MOVED:
        return f"'{key}' is now '{run_schema.MOVED[key]}'; rename it"
    near = difflib.get_close_matches(key, _known(key), n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(key.split(".")[-1], [name.split(".")[-1] for name in names()], n=1)
    return f"unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "")


def parse(values: Any, place: str = "recipe") -> tuple[Recipe, list[str]]:
    """Return the recipe that a dictionary describes, and the Google Cloud keys in it that mean nothing here."""
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
        place = f"--set {override if len(override) <= 200 else override[:200] + '…'}"
        target[last] = recipe_yaml.parse(text, place, has_lines=False)
    return result


def read(path: Path) -> Any:
    """Return what a YAML file says; errors name the file and the line."""
    try:
        return recipe_yaml.parse(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        raise PlatformError(f"{path}: no such recipe; `preferent recipe init` writes one") from None
    except IsADirectoryError:
        own = path / "recipe.yaml"
        way = f"`preferent run {own} --out {path}` goes on with the run in it" if own.is_file() else "give a YAML file"
        raise UsageError(f"{path}: is a folder; {way}") from None
    except (OSError, ValueError) as error:
        raise PlatformError(f"{path}: cannot be read as a recipe: {error}") from None


def load(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Return the recipe in a YAML file with `--set` overrides, and the Google Cloud keys in it that are ignored.

    In a run's own `recipe.yaml` the values that nobody asked for are open again, so that they follow the overrides.
    """
    values = read(path)
    return parse(
        assign(run_schema.reopened(values, path), overrides) if isinstance(values, dict) else values, str(path)
    )


def dump(recipe: Recipe, by_default: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the recipe as YAML, every field written out, with the values `by_default` of those that are open."""
    written = run_schema.written(recipe.model_dump(mode="json"), by_default)
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True)


def defaults_in(path: Path) -> dict[str, Any]:
    """Return the values in a run's `recipe.yaml` that nobody asked for, by dotted key."""
    return dict(read(path).get("defaults") or {})


def tuned_by(recipe: Recipe) -> str:
    """Return what people call the way in which the policy is tuned."""
    losses = {"sigmoid": "DPO", "ipo": "IPO", "reference_free": "SimPO"}
    methods = {"reinforcement_learning": "PPO", "dpo": losses[recipe.dpo.loss], "kto": "KTO"}
    return methods.get(recipe.method, "rejection sampling")


def pick(recipe: Recipe, *keys: str) -> dict[str, Any]:
    """Return the named fields, dotted fields and sections of a recipe as plain values: what a stage depends on."""
    values = recipe.model_dump(mode="json")
    return {key: _reach(values, key) for key in keys}


def _reach(values: dict[str, Any], key: str) -> Any:
    """Return the value under a dotted key; None below a section that is off."""
    found: Any = values
    for part in key.split("."):
        found = None if found is None else found[part]
    return found
