"""The sections of a recipe: what GCPC hid, each field with its type, its default and its meaning."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from preferent.config import remote_names

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Paths = str | list[str]


def paths(value: Paths | None) -> list[str]:
    """Return a field that holds one path or several, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def nameable(name: str) -> str:
    """Return the name of a file or a model; refuse one that no file system can hold."""
    if "\0" in name or any(len(part.encode(errors="replace")) > 255 for part in name.split("/")) or len(name) > 4000:
        raise ValueError("is no name of a file or a model: it is too long, or holds U+0000")
    return name


def _checked(value: Paths, may_be_remote: bool = False) -> Paths:
    for path in paths(value):
        if not path.strip():
            raise ValueError("a path is empty")
        nameable(path)
        if path in ("-", "/dev/stdin") or Path(path).is_fifo():
            raise ValueError(f"{path} is a pipe, which can be read only once; write it to a file and name that")
        if remote_names.is_remote(path):
            remote_names.require(path)
            if not may_be_remote:
                only = f"{remote_names.FIELDS} alone may be"
                raise ValueError(f"{path} is remote, which {only}; copy it here and name the copy")
    return value


DataFiles = Annotated[Paths, AfterValidator(partial(_checked, may_be_remote=True))]
Files = Annotated[Paths, AfterValidator(_checked)]
OneFile = Annotated[str, AfterValidator(_checked)]
CHAT_ARGUMENTS = {
    *("messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
    *("sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
}
"""Names that are no variables of a chat template: those of the conversation, and of how transformers renders it."""
COLUMNS = (
    *("prompt", "chosen", "rejected", "completion", "input_text", "candidate_0", "candidate_1", "choice"),
    *("output_text", "messages", "context", "text", "reference", "id", "group", "strength", "annotator", "extra"),
)
"""The meanings that the key of a row may have; `extra` is none."""


def _meanings(columns: dict[str, Paths]) -> dict[str, Paths]:
    for meaning, keys in columns.items():
        if meaning not in COLUMNS:
            raise ValueError(f"'{meaning}' is unknown; the meanings are {', '.join(COLUMNS)}")
        if not paths(keys) or not all(paths(keys)):
            raise ValueError(f"{meaning}: a key is empty")
    return columns


class Section(BaseModel):
    """A part of the recipe: an unknown key is an error, a value keeps its type."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class DataSection(Section):
    max_dropped: Share = 0.01
    """Share of unusable rows that `run` drops with a warning; above it the run stops with exit code 4."""
    format: Literal["auto", "gcpc", "trl", "hh", "openai"] = "auto"
    """Format of the preference rows; `auto` looks at the rows."""
    columns: Annotated[dict[str, Paths], AfterValidator(_meanings)] = Field(default={})
    """What the keys of the rows mean where they have other names: `{prompt: question, chosen: better}`. Texts under
    several keys are joined by newlines: `{prompt: [instruction, input]}`. Keys under `extra` mean nothing."""
    validation_share: Share = 0.05
    """Share of the prompts kept for validation (early stopping, selection, budget) where there is no `eval_dataset`."""
    test_share: Share = 0.05
    """Share of the prompts kept for the verdict and the reported accuracy."""

    @property
    def named_columns(self) -> dict[str, list[str]]:
        """Return `columns` with a list of keys for each meaning."""
        return {meaning: paths(keys) for meaning, keys in self.columns.items()}


class SftSection(Section):
    dataset: Files
    """Files to imitate: prompt/answer rows (`input_text`, `output_text`) or plain text (`text`)."""
    train_steps: Count = 1000
    """Optimizer steps; a step is one batch."""
    batch_size: Count = 64
    """Sequences in a batch."""
    sequence_length: Count | None = None
    """Tokens of a packed plain-text sequence; default: prompt_sequence_length + target_sequence_length."""
    lora_dim: NotNegative | None = None
    """LoRA rank, alpha is twice it; 0 trains every weight; default: by the model's size. A LoRA result is merged."""
    learning_rate: Positive | None = None
    """Peak learning rate; default: by lora_dim."""
    warmup_steps: NotNegative = 0
    """Steps over which the learning rate rises linearly from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up: constant, or to zero at the last step."""
    max_grad_norm: Positive = 1.0
    """Global gradient norm above which the gradient is scaled down."""
    validation_every: Count = 100
    """Steps between evaluations on validation rows."""
    micro_batch_tokens: Count | None = None
    """Padded tokens computed at once; changes memory and speed, not the result; default: by the device's memory."""


class RewardSource(Section):
    source: Annotated[str, Field(min_length=1)]
    """The word `reward`, `module:function`, or a reward model's folder or hub id."""
    weight: float = 1.0
    """What its normalised score is multiplied by."""
    name: Annotated[str, Field(pattern=r"^\w+$")] | None = None
    """What its scores are called; default: from the source."""


@dataclass(frozen=True, slots=True)
class RewardPart:
    """A reward that is summed: `source` is the word reward, `module:function` or a model's reference, as `kind` says;
    `place` is where the recipe names it."""

    name: str
    kind: Literal["reward", "function", "model"]
    source: str
    weight: float
    place: str


def _part(source: RewardSource, place: str) -> RewardPart:
    """Return the source with its name and kind; `place` is where the recipe names it."""
    kind: Literal["reward", "function", "model"] = "model"
    last = source.source.partition("@")[0].rstrip("/").split("/")[-1]
    if source.source == "reward":
        kind = "reward"
    elif re.fullmatch(r"[\w.]+:[\w.]+", source.source):
        kind, last = "function", source.source.split(":")[1]
    return RewardPart(source.name or re.sub(r"\W+", "_", last), kind, source.source, source.weight, place)


def parts(sources: str | list[RewardSource] | None) -> tuple[RewardPart, ...]:
    """Return what the reward is the sum of. A text is short for a list of one, whose scores are called `reward`."""
    if sources is None or isinstance(sources, str):
        return (_part(RewardSource(source=sources or "reward", name="reward"), "reward.sources"),)
    return tuple(_part(source, f"reward.sources.{number}.source") for number, source in enumerate(sources))


def _told_apart(sources: list[RewardSource]) -> list[RewardSource]:
    """Return the sources if their names differ and what this run trains is among them once at most."""
    every = parts(sources)
    if sum(part.kind == "reward" for part in every) > 1:
        raise ValueError("what this run trains (`reward`) is named twice; give it once, with the sum of the weights")
    names = [part.name for part in every]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(
                f"sources {names.index(name)} and {number} are both called {name}; give one another `name`"
            )
    return sources


def _shape(value: Any) -> str:
    return SEVERAL if isinstance(value, list) else ONE


ONE, SEVERAL = "a text", "a list"
"""What pydantic calls the two shapes of `reward.sources` in the place of an error."""
Rewards = Annotated[
    Annotated[str, Field(min_length=1), Tag(ONE)]
    | Annotated[list[RewardSource], Field(min_length=1), AfterValidator(_told_apart), Tag(SEVERAL)],
    Discriminator(_shape),
]


class RewardSection(Section):
    sources: Rewards | None = None
    """What tuning raises: a list of {source, weight, name}, whose weighted sum is the reward. A source is the word
    `reward` (what this run trains), `module:function` from (prompts, answers), two lists of text, to a list of scores,
    or a reward model's folder or hub id. A text alone is a list of one, whose scores are called `reward`. Default:
    what this run trains."""
    lora_dim: NotNegative | None = None
    """LoRA rank of the reward model, alpha is twice it; 0 trains every weight; default: by the model's size."""
    learning_rate: Positive | None = None
    """Learning rate before the multiplier; default: by lora_dim."""
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
    margin: Annotated[float, Field(ge=0.0)] = 0.0
    """Times a pair's `strength`: by how much its chosen answer should win. Llama 2: 1 or 1/3, strengths 3, 2, 1, 0."""
    ties: Literal["drop", "soft"] = "drop"
    """Pairs of which neither was chosen: left out of training, or trained on towards equal scores."""
    centering: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of (score chosen + score rejected)², which holds scores near zero; 0.01 is usual."""
    validation_every: Count = 50
    """Steps between evaluations on validation pairs; the checkpoint of least validation loss is kept."""
    early_stopping_patience: Count | None = None
    """Stop after this many evaluations in a row without a better validation loss; default: never."""
    members: Count = 1
    """Reward models trained, alike but for the seed of head and data order; together they are the reward."""
    combine: Literal["mean", "worst", "variance", "weights"] = "mean"
    """How members make one score: their mean, the least, mean - variance_coeff * variance (Coste 2024), or one model of
    their averaged weights (WARM, Ramé 2024)."""
    variance_coeff: Annotated[float, Field(ge=0.0)] = 0.1
    """Of combine variance: weight of the members' variance, divided by their number (ddof 0)."""
    normalize: Literal["bias", "std", "none"] = "bias"
    """Before tuning: subtract the mean score of the reference's answers, of each reward model and function on its own;
    `std` also divides by their deviation."""
    normalize_prompts: Count = 256
    """Training prompts whose reference answers set the reward's bias."""
    clip: Positive | None = None
    """The normalised score is clipped to plus or minus this; null: off."""
    overlong_tokens: Count | None = None
    """The last so many tokens of target_sequence_length, over which a penalty on length rises linearly (the soft
    overlong punishment of Yu 2025); null: off."""
    overlong_penalty: Positive = 1.0
    """Score units that an answer as long as target_sequence_length loses."""
    missing_eos_score: float | None = -1.0
    """Replaces the score of an answer that did not end, after everything else; null: off."""
    micro_batch_tokens: Count | None = None
    """Padded tokens computed at once; changes memory and speed, not the result; default: by the device's memory."""

    @property
    def parts(self) -> tuple[RewardPart, ...]:
        """What the reward is the weighted sum of."""
        return parts(self.sources)


class PPOSection(Section):
    algorithm: Literal["ppo", "rloo", "grpo", "dr_grpo", "reinforce_plus_plus", "remax"] = "ppo"
    """How an answer's advantage is estimated: by a critic (ppo), or against other answers to its prompt, the batch, or
    the greedy answer."""
    batch_size: Count = 64
    """Rollouts in a step, all answers to a prompt counted."""
    samples_per_prompt: Count | None = None
    """Answers sampled to each prompt of a step; default: by algorithm."""
    minibatches: Count = 1
    """Optimizer steps an epoch; each minibatch is made of whole micro-batches."""
    epochs: Count | None = None
    """Passes over the rollouts of a step; default: by algorithm."""
    lora_dim: NotNegative | None = None
    """LoRA rank of the policy, alpha is twice it; 0 trains every weight; default: by the model's size."""
    learning_rate: Positive | None = None
    """Policy learning rate before the multiplier; default: by lora_dim."""
    critic_learning_rate: Positive | None = None
    """Critic learning rate before the multiplier; default: by lora_dim."""
    warmup_steps: NotNegative = 0
    """Steps over which both learning rates rise linearly from zero."""
    schedule: Literal["constant", "linear"] = "constant"
    """How the learning rates go on after the warm-up: constant, or linearly to zero at the last step."""
    max_grad_norm: Positive = 1.0
    """Global gradient norm above which the gradient is scaled down, policy and critic each."""
    clip_range: Positive = 0.2
    """Epsilon of the clipped policy ratio."""
    clip_range_high: Positive | None = None
    """Epsilon above 1 where it should be another ("clip higher", Yu 2025: 0.28); default: clip_range."""
    dual_clip: Annotated[float, Field(gt=1.0)] | None = None
    """Bounds the loss of a bad token at this many times its advantage (Ye 2020: 3); null: off."""
    entropy_coeff: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the entropy of the policy, nats per token, in the loss."""
    value_clip_range: Positive | None = 0.2
    """How far a value may move from its rollout value before the loss is clipped; null: no clipping."""
    vf_coeff: Positive = 0.1
    """Weight of the value loss."""
    critic_warmup_steps: NotNegative = 0
    """First steps in which the critic learns and the policy does not."""
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Discount."""
    gae_lambda: Annotated[float, Field(ge=0.0, le=1.0)] = 0.95
    """Lambda of generalized advantage estimation."""
    whiten_rewards: bool = False
    """Scale a step's rewards to deviation 1, their mean kept (Ziegler 2019)."""
    whiten_advantages: bool | None = None
    """Shift and scale a step's advantages to mean 0 and deviation 1; default: by algorithm."""
    kl_in: Literal["reward", "loss"] | None = None
    """Where the KL penalty stands: in the reward (k1) or in the loss (k2); default: by algorithm."""
    kl_target: Positive | None = None
    """Nats an answer at which the adaptive controller holds the KL, moving kl_coeff (Ziegler 2019); null: fixed."""
    kl_horizon: Count = 10000
    """Episodes over which the adaptive controller acts."""
    kl_budget: Positive | None = None
    """Nats an answer on validation prompts above which training stops."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Validate and deliver the moving average of the policy's weights with this decay a step; null: off."""
    ptx_coeff: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the loss on `ptx_dataset` mixed in (PPO-ptx, Ouyang 2022), nats per token."""
    ptx_dataset: Files | None = None
    """Plain text or demonstrations that the policy should not forget; default: sft.dataset."""
    ptx_batch_size: Count | None = None
    """Sequences of `ptx_dataset` in a minibatch; default: as many as it has rollouts."""
    validation_every: Count = 25
    """Steps between evaluations on validation prompts (selection, budget, early stopping)."""
    validation_prompts: Count = 256
    """Validation prompts used, at most."""
    early_stopping_patience: Count | None = None
    """Stop after this many evaluations in a row without a better score - kl_coeff * KL; default: never."""
    micro_batch_tokens: Count | None = None
    """Padded tokens computed at once; changes memory and speed, not the result; default: by the device's memory."""


class DPOSection(Section):
    loss: Literal["sigmoid", "ipo", "reference_free"] = "sigmoid"
    """Of method dpo: DPO (Rafailov 2023), IPO (Azar 2024), or length-normalised without a reference (SimPO, Meng 2024).
    beta is kl_coeff; log-probabilities are at sampler.temperature."""
    train_steps: Count = 1000
    """Optimizer steps; a step is one batch of pairs."""
    batch_size: Count = 64
    """Pairs in a batch."""
    lora_dim: NotNegative | None = None
    """LoRA rank of the policy, alpha is twice it; 0 trains every weight; default: by the model's size."""
    learning_rate: Positive | None = None
    """Peak learning rate; default: by lora_dim."""
    warmup_steps: NotNegative = 0
    """Steps over which the learning rate rises linearly from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up: constant, or to zero at the last step."""
    max_grad_norm: Positive = 1.0
    """Global gradient norm above which the gradient is scaled down."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Probability that a label is wrong (conservative DPO, Mitchell 2023); of the sigmoid loss."""
    target_margin: Annotated[float, Field(ge=0.0)] = 0.0
    """By how much the chosen answer should win in the reference-free loss (gamma of SimPO)."""
    desirable_weight: Positive = 1.0
    """Of method kto: weight of chosen answers (lambda_D, Ethayarajh 2024), times what balances unequal numbers."""
    undesirable_weight: Positive = 1.0
    """Of method kto: weight of rejected answers (lambda_U), times what balances unequal numbers."""
    validation_every: Count = 50
    """Steps between evaluations on validation pairs; the checkpoint of least validation loss is kept."""
    early_stopping_patience: Count | None = None
    """Stop after this many evaluations in a row without a better validation loss; default: never."""
    micro_batch_tokens: Count | None = None
    """Padded tokens computed at once; changes memory and speed, not the result; default: by the device's memory."""


class RejectionSection(Section):
    rounds: Count = 4
    """Times that answers are sampled, the best kept, and the policy fine-tuned on them (Touvron 2023, section 3.2)."""
    prompts: Count = 512
    """Training prompts answered in a round."""
    samples: Count = 8
    """Answers sampled to each prompt, of which the reward's favourite is kept."""
    train_steps: Count = 50
    """Optimizer steps of a round; a step is one batch of kept answers, of this and all earlier rounds."""
    batch_size: Count = 64
    """Kept answers in a batch."""
    lora_dim: NotNegative | None = None
    """LoRA rank of the policy, alpha is twice it; 0 trains every weight; default: by the model's size."""
    learning_rate: Positive | None = None
    """Peak learning rate; default: by lora_dim."""
    max_grad_norm: Positive = 1.0
    """Global gradient norm above which the gradient is scaled down."""
    micro_batch_tokens: Count | None = None
    """Padded tokens computed at once; changes memory and speed, not the result; default: by the device's memory."""


class SamplerSection(Section):
    temperature: Positive = 1.0
    """Logits are divided by it in policy, old policy and reference."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Keep the fewest tokens that hold this probability; 1 is off. Rollouts always sample the full distribution."""
    top_k: NotNegative = 0
    """Keep this many tokens; 0 is off. Rollouts always sample the full distribution."""
    rows: Count | None = None
    """Answers decoded at once; changes memory and speed, not the result; default: by the device's memory."""
    prefill_tokens: Count | None = None
    """Padded prompt tokens read in one pass before answers are decoded; changes memory and speed, not the result;
    default: by the device's memory."""


class InferSection(Section):
    sampling_strategy: Literal["greedy", "temperature_sampling"] = "greedy"
    """How the verdict's answers are made."""
    best_of: Count = 1
    """Answers sampled to each prompt, of which the tuned model's is the one with the highest reward; base and original
    give one."""
    max_prompts: Count | None = 1000
    """Test prompts answered, at most; null: all."""
