"""How much memory and disk the stages of a run take, as formulas over the shapes of a model: no weights, no torch.

Symbols: D hidden size, K = key-value heads x head size, Q = heads x head size, I size inside the MLP, L layers, V
vocabulary, n parameters, t parameters that learn, b bytes of a number in computation (fp32 4, bf16 2), P and A tokens
of a prompt and of an answer. All results are bytes or counts. A stage's peak is what stays all the time plus the
largest of its phases, which do not overlap. The formulas are those of Llama's architecture.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from preferent.config.algorithms import algorithm
from preferent.config.defaults import decided, reference, reward_reference
from preferent.config.gcpc_names import resolve_model
from preferent.config.model_shape import (
    HEAP_BELOW,
    Shape,
    copied_weights,
    head_gradient,
    keeps_attention,
    kept_activations,
    kv_cache,
    logits,
    measuring,
    passing_activations,
    sampling,
)
from preferent.config.recipe import Recipe
from preferent.config.stage_graph import judged, trains

BASELINE = 450 << 20
"""What a stage holds before any weight is there: interpreter, torch, transformers, peft (measured, CPU build)."""
HEAP_LOSS = 1.25
"""What activations on that heap take of their size, since freed tensors leave gaps that others do not fit (measured,
under `cluster.ALLOCATOR`: 1.2 to 1.35)."""
NF4 = (1 + (1 + 4 / 256) / 32) / 2
"""Bytes of a weight of a linear layer in 4 bits: blocks of 64 have a scale of 8 bits, 256 scales one of fp32 (Dettmers
2023)."""
BITS_8 = 2 * (1 + 4 / 256)
"""Bytes of a weight's two moments in 8 bits, whose blocks of 256 have an fp32 scale each (Dettmers 2022)."""
REWARD_SAMPLES = 64
"""Prompts of held-out preferences that the model from which a reward model starts answers, at most."""
MOST_SCORED = 256
"""Answers that are scored at once, at most."""
MASTER = 4
"""Bytes that the best checkpoint keeps of it: nothing learns from it again."""


@dataclass(frozen=True)
class MemoryNeed:
    """The memory of one stage: `parts` stay, `phases` come one at a time; what comes `before` is gone when the parts
    are there. Bytes."""

    stage: str
    parts: Mapping[str, int]
    phases: Mapping[str, Mapping[str, int]]
    before: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def phase(self) -> str:
        """The name of the largest phase, the parts beside it counted."""
        return max(self._whole, key=lambda name: sum(self._whole[name].values()))

    @property
    def _whole(self) -> dict[str, Mapping[str, int]]:
        """All that is there in each phase."""
        return {**self.before, **{name: Counter(self.parts) + Counter(held) for name, held in self.phases.items()}}

    @property
    def peak(self) -> int:
        """Baseline and the largest phase, the parts beside it counted."""
        return BASELINE + sum(self._whole[self.phase].values())

    def most(self, name: str) -> int:
        """Return the most that there ever is of something."""
        return max(phase.get(name, 0) for phase in self._whole.values())


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the needs of a recipe with its defaults resolved depend on: shapes of policy and reward model, `bytes` a
    number in computation, the longest prompt in tokens, how many prompts there are in each part, whether `sft` packs
    plain text, whether a GPU computes, the shapes of further reward models that the recipe names, and of
    language models that judge here."""

    recipe: Recipe
    shape: Shape
    reward_shape: Shape
    bytes: int
    prompt: int
    prompts: Mapping[str, int]
    packed: bool = False
    on_gpu: bool = False
    others: tuple[Shape, ...] = ()
    judges: tuple[Shape, ...] = ()

    @property
    def length(self) -> int:
        """The longest sequence."""
        return self.prompt + self.recipe.target_sequence_length

    @property
    def whole(self) -> int:
        """The longest sequence whose attention weights are kept whole; 0 where fused attention keeps none."""
        return self.length if keeps_attention(self.recipe, not self.on_gpu, self.bytes == 2) else 0

    def tokens(self, limit: int, rows: int) -> int:
        """Padded tokens of a micro-batch: whole sequences within the limit, and no more than there are rows."""
        return self.length * max(1, min(limit // self.length, rows))

    def learning(self, shape: Shape, tokens: int, states: int, rank: int) -> int:
        """Return the activations of a micro-batch of `tokens` that learns from `states`, with what the allocator loses:
        on a CPU, of small tensors."""
        checkpointing = self.recipe.gradient_checkpointing
        count = kept_activations(shape, tokens, states, self.bytes, rank > 0, checkpointing, self.whole)
        large = tokens * shape.hidden_size * self.bytes >= HEAP_BELOW
        return self.restored(shape) + (count if self.on_gpu or large else round(HEAP_LOSS * count))

    def restored(self, shape: Shape) -> int:
        """Return the bytes of the largest linear layer, which is restored from 4 bits for each product."""
        return self.bytes * shape.hidden_size * shape.intermediate_size if self.quantized else 0

    @property
    def one_backbone(self) -> bool:
        """Whether reward models and critic are adapters on the policy's frozen backbone: all start from one model."""
        recipe, start = self.recipe, reward_reference(self.recipe)
        alike = self.shape == self.reward_shape and resolve_model(start) == resolve_model(recipe.large_model_reference)
        return alike and bool(recipe.reward.lora_dim) and tuned_rank(self) > 0

    def frozen(self, shape: Shape, count: int) -> int:
        """Return the bytes of `count` weights that do not learn, the linear layers of a shape among them."""
        linear = NF4 if self.quantized else self.bytes
        return round(linear * shape.linear) + self.bytes * (count - shape.linear)

    @property
    def quantized(self) -> bool:
        return self.recipe.quantize is not None

    @property
    def moments(self) -> float:
        """Bytes of a weight's two moments in AdamW: 8, or 2 and the scales of their blocks."""
        return BITS_8 if self.recipe.optimizer == "adamw8bit" else 8.0

    def optimizer(self, trained: int) -> int:
        """Return the moments of AdamW, and fp32 masters (4 t) of what computes in bf16."""
        return round(trained * (self.moments + (0 if self.bytes == 4 else 4)))

    def learner(self, name: str, shape: Shape, weights: int, trained: int, rank: int) -> dict[str, int]:
        """Return a network's weights, those of its adapter beside them if it has one, and its optimizer."""
        held = self.frozen(shape, weights) + (self.bytes * trained if rank else 0)
        return {name: held, "optimizer": self.optimizer(trained)}

    def rewards(self) -> int:
        """Return the weights of what is optimised: the members of the ensemble, or one of their weights averaged, and
        the models that the recipe names."""
        section = self.recipe.reward
        trained = any(part.kind == "reward" for part in self.recipe.reward.parts)
        members = 1 if section.combine == "weights" else section.members
        own, rank = self.reward_shape, decided(section.lora_dim)
        each = self.bytes * own.adapter(rank) if self.one_backbone else self.frozen(own, own.scorer)
        return trained * members * each + sum(self.frozen(other, other.scorer) for other in self.others)

    def scoring(self) -> dict[str, int]:
        """Return what scores of answers take, a micro-batch at a time."""
        tokens = self.tokens(decided(self.recipe.reward.micro_batch_tokens), MOST_SCORED)
        passing = passing_activations(self.reward_shape, tokens, self.bytes)
        return {"activations": passing + self.restored(self.reward_shape)}

    def measuring(self, rows: int, limit: int | None, lora: bool) -> dict[str, int]:
        """Return what the log-probabilities of `rows` answers take, a micro-batch of `limit` tokens at a time.

        It is a forward pass, and then the logits, for which a CPU's heap has no room in the gaps that the pass leaves.
        """
        tokens = self.tokens(decided(limit), rows)
        answers = tokens // self.length * self.recipe.target_sequence_length
        passes = passing_activations(self.shape, tokens, self.bytes, lora), measuring(self.shape, answers, self.bytes)
        return {"activations": self.restored(self.shape) + (max(passes) if self.on_gpu else sum(passes))}


def decoding(facts: ModelFacts, answers: int, lora: bool) -> dict[str, int]:
    """Return what sampling so many answers takes, `sampler.rows` at once, whose prompts are read some at a time."""
    sampler, shape, b = facts.recipe.sampler, facts.shape, facts.bytes
    rows = min(decided(sampler.rows), answers)
    prompts = max(1, min(decided(sampler.prefill_tokens) // facts.prompt, rows))
    cache = kv_cache(shape, rows, facts.length, b)
    held = sampling(shape, rows, prompts * facts.prompt, b) + copied_weights(shape, b, lora or facts.quantized)
    return {"KV cache": cache, "activations": held + facts.restored(shape)}


def sft(facts: ModelFacts) -> MemoryNeed:
    """Policy and optimizer; a micro-batch's activations beside the gradients of those before it, or all gradients."""
    section, shape, b = facts.recipe.sft, facts.shape, facts.bytes
    assert section is not None
    rank = decided(section.lora_dim)
    trained = shape.lora(rank) if rank else shape.policy
    length = decided(section.sequence_length) if facts.packed else facts.length
    rows = max(1, min(decided(section.micro_batch_tokens) // length, section.batch_size))
    targets = rows * (length if facts.packed else facts.recipe.target_sequence_length)
    parts = facts.learner("policy", shape, shape.policy, trained, rank)
    earlier = 4 * trained if rows < section.batch_size else 0
    learn = {
        "gradients": earlier + head_gradient(shape, b, rank > 0),
        "activations": facts.learning(shape, rows * length, targets, rank) + logits(shape, targets, b),
    }
    return MemoryNeed("sft", parts, {"learn": learn, "step": {"gradients": 4 * trained}})


def reward(facts: ModelFacts) -> MemoryNeed:
    """Reward model, optimizer; a batch's activations, or at the end the best checkpoint (4 t) beside the weights.

    Before them the language model from which it starts samples answers.
    """
    section, shape = facts.recipe.reward, facts.reward_shape
    rank = decided(section.lora_dim)
    trained = shape.adapter(rank) if rank else shape.scorer
    tokens = facts.tokens(decided(section.micro_batch_tokens), 2 * section.batch_size)
    parts = facts.learner("reward", shape, shape.scorer, trained, rank)
    earlier = 4 * trained if tokens < 2 * section.batch_size * facts.length else 0
    learn = {"gradients": earlier, "activations": facts.learning(shape, tokens, tokens // facts.length, rank)}
    own = facts.recipe.prompt_dataset is None
    samples = min(REWARD_SAMPLES, facts.prompts["validation"]) if own else REWARD_SAMPLES
    before = decoding(replace(facts, shape=shape), samples, lora=False)
    step = {"gradients": 4 * trained}
    phases = {"learn": learn, "step": step, "finish": {"best": MASTER * trained}}
    return MemoryNeed("reward", parts, phases, {"sample": {"policy": facts.frozen(shape, shape.policy)} | before})


def ppo(facts: ModelFacts) -> MemoryNeed:
    """Policy, reference, reward model, critic, two optimizers; then sampling, learning, or at the end the best policy.

    With LoRA the reference is the policy's backbone and the critic the reward model's.
    """
    recipe, shape, b = facts.recipe, facts.shape, facts.bytes
    section = recipe.ppo
    has_reward = any(part.kind == "reward" for part in recipe.reward.parts)
    scorer = facts.reward_shape if has_reward else facts.shape
    rank = decided(section.lora_dim)
    critic_rank = decided(recipe.reward.lora_dim) if has_reward else rank
    critic_rank *= recipe.reward.members if recipe.reward.combine == "weights" and has_reward else 1
    trained = shape.lora(rank) if rank else shape.policy
    with_critic = algorithm(section).critic
    critic = 0 if not with_critic else scorer.adapter(critic_rank) if critic_rank else scorer.scorer
    parts = {
        "policy": facts.frozen(shape, shape.policy) + (b * trained if rank else 0),
        "reference": facts.frozen(shape, shape.policy) if reference(recipe, "ppo") == "copy" else 0,
        "reward": facts.rewards(),
        "critic": with_critic * (0 if critic_rank and (has_reward or rank) else scorer.scorer * b)
        + (b * critic if critic_rank else 0),
        "optimizer": facts.optimizer(trained) + facts.optimizer(critic),
        "average": 4 * trained if section.ema_decay is not None else 0,
    }
    rows = max(1, section.batch_size // section.minibatches)
    tokens = facts.tokens(decided(section.micro_batch_tokens), rows)
    answers = tokens // facts.length * recipe.target_sequence_length
    kept = max(facts.learning(s, tokens, answers, r) for s, r in ((shape, rank), (scorer, critic_rank)))
    limits = {"train": recipe.reward.normalize_prompts, "validation": section.validation_prompts}
    prompt_counts = [min(limit, facts.prompts[part]) for part, limit in limits.items()]
    gradients = 4 * (trained + critic) + head_gradient(shape, b, rank > 0)
    phases = {
        "learn": {"gradients": gradients, "activations": kept + logits(shape, answers, b)},
        "measure": facts.measuring(section.batch_size, section.micro_batch_tokens, rank > 0),
        "sample": decoding(facts, max(section.batch_size, *prompt_counts), rank > 0),
        "finish": {"best": MASTER * trained},
    }
    return MemoryNeed("ppo", parts, phases)


def dpo(facts: ModelFacts) -> MemoryNeed:
    """Policy and optimizer, no reference: before it learns the policy is its own. A batch's activations, or at the end
    the best checkpoint (4 t) beside the weights."""
    section, shape, b = facts.recipe.dpo, facts.shape, facts.bytes
    rank = decided(section.lora_dim)
    trained = shape.lora(rank) if rank else shape.policy
    tokens = facts.tokens(decided(section.micro_batch_tokens), 2 * section.batch_size)
    answers = tokens // facts.length * facts.recipe.target_sequence_length
    parts = facts.learner("policy", shape, shape.policy, trained, rank)
    earlier = 4 * trained if tokens < 2 * section.batch_size * facts.length else 0
    learn = {
        "gradients": earlier + head_gradient(shape, b, rank > 0),
        "activations": facts.learning(shape, tokens, answers, rank) + logits(shape, answers, b),
    }
    step = {"gradients": 4 * trained}
    return MemoryNeed("dpo", parts, {"learn": learn, "step": step, "finish": {"best": MASTER * trained}})


def rejection(facts: ModelFacts) -> MemoryNeed:
    """Policy, reference, reward models, optimizer; then sampling, learning, or at the end the best policy."""
    recipe, shape, b = facts.recipe, facts.shape, facts.bytes
    section, rank = recipe.rejection, decided(recipe.rejection.lora_dim)
    trained = shape.lora(rank) if rank else shape.policy
    tokens = facts.tokens(decided(section.micro_batch_tokens), section.batch_size)
    answers = tokens // facts.length * recipe.target_sequence_length
    phases = {
        "learn": {
            "gradients": 4 * trained + head_gradient(shape, b, rank > 0),
            "activations": facts.learning(shape, tokens, answers, rank) + logits(shape, answers, b),
        },
        "measure": facts.measuring(
            min(recipe.ppo.validation_prompts, facts.prompts["validation"]), section.micro_batch_tokens, rank > 0
        ),
        "sample": decoding(facts, section.samples * min(section.prompts, facts.prompts["train"]), rank > 0),
        "finish": {"best": MASTER * trained},
    }
    parts = facts.learner("policy", shape, shape.policy, trained, rank) | {
        "reference": facts.frozen(shape, shape.policy) if reference(recipe, "rejection") == "copy" else 0,
        "reward": facts.rewards(),
    }
    return MemoryNeed("rejection", parts, phases)


def tuned_rank(facts: ModelFacts) -> int:
    """Return the LoRA rank of the policy that the run tunes; 0: every weight learns."""
    recipe = facts.recipe
    if recipe.method == "reinforcement_learning":
        return decided(recipe.ppo.lora_dim)
    return decided((recipe.rejection if recipe.method == "rejection_sampling" else recipe.dpo).lora_dim)


def infer(facts: ModelFacts) -> MemoryNeed:
    """Return the need of the tuned policy, the base (with LoRA the same backbone) and what chooses among answers, while
    they sample and then measure the KL."""
    recipe, shape = facts.recipe, facts.shape
    prompts = min(recipe.infer.max_prompts or facts.prompts["test"], facts.prompts["test"])
    answers = min(decided(recipe.sampler.rows), 256, prompts * recipe.infer.best_of)
    lora = tuned_rank(facts) > 0
    shared = lora and not recipe.continues
    base = facts.frozen(shape, shape.policy)
    parts = {"policy": base, "reference": 0 if shared else base}
    if recipe.infer.best_of > 1:
        parts["reward"] = facts.rewards()
    phases = {
        "sample": decoding(facts, answers, lora),
        "measure": facts.measuring(answers, recipe.ppo.micro_batch_tokens, lora),
    }
    return MemoryNeed("infer", parts, phases)


def compare(facts: ModelFacts) -> MemoryNeed:
    """Return the need of the reward models that judge, which are loaded beside each other and with LoRA share one
    backbone, or of the largest language model that does."""
    b, recipe, own = facts.bytes, facts.recipe, facts.reward_shape
    members = recipe.reward.members if recipe.reward.combine != "weights" else 1
    scorers = judged(recipe) + trains(recipe) * members
    weights = facts.frozen(own, own.scorer) * (min(scorers, 1) if decided(recipe.reward.lora_dim) > 0 else scorers)
    weights += sum(facts.frozen(other, other.scorer) for other in facts.others)
    phases = {"score": {"reward": weights, **facts.scoring()}}
    for shape in facts.judges:
        asked = replace(facts, shape=shape)
        tokens = decided(recipe.compare.micro_batch_tokens)
        spoken = {"policy": facts.frozen(shape, shape.policy)} | decoding(
            asked, decided(recipe.sampler.rows), lora=False
        )
        spoken["activations"] = max(
            spoken["activations"], passing_activations(shape, tokens, b) + measuring(shape, tokens, b)
        )
        phases["judge"] = max(phases.get("judge", {}), spoken, key=lambda phase: sum(phase.values()))
    return MemoryNeed("compare", {}, phases)


NEEDS: Mapping[str, Callable[[ModelFacts], MemoryNeed]] = {
    "sft": sft,
    "reward": reward,
    "ppo": ppo,
    "dpo": dpo,
    "rejection": rejection,
    "infer": infer,
    "compare": compare,
}
"""The stages that hold models, each with the formula of what it needs."""


def need(facts: ModelFacts, stage: str) -> MemoryNeed:
    """Return what a stage needs of the memory of its device."""
    return NEEDS[stage](facts)
