"""How fast a card computes what the stages do, from its data sheet: nothing is run here.

Symbols as in `preferent.config.memory_estimate`, and T tokens of a sequence. A forward pass takes 2 FLOP a token for
each weight of a linear layer (Kaplan 2020, section 2.1), 2 T^2 Q a layer for causal attention, and 2 V D for each token
whose logits are asked for. A backward pass takes as much for each gradient that is asked for: of activations, and of
weights where they learn. Attention has no weights; its backward pass takes twice its forward pass.
"""

from collections.abc import Mapping

from preferent.commands.cards.hardware import Card
from preferent.commands.cards.rank_memory import at_once
from preferent.commands.time_estimate import Speeds, Work
from preferent.config.defaults import decided
from preferent.config.memory_estimate import REWARD_SAMPLES, ModelFacts, tuned_rank
from preferent.config.model_shape import Shape, kv_cache
from preferent.runs.rank_shares import Learner, is_cut, learners

TRAINED = 0.30
"""Share of a card's FLOP/s that passes over sequences reach. Assumed: pretraining, on long sequences of one length,
reaches 0.44 to 0.52 (Narayanan 2021, table 1)."""
DECODED = 0.60
"""Share of a card's bandwidth that decoding and the optimizer reach. Assumed."""
LAUNCH = 14e-6
"""Seconds until a processor has told the card of one operation (measured without a card: 38.8 ms for 2,770)."""
OPERATIONS, ADAPTED = 23, 51
"""Operations of a layer for the next token of all rows, in `preferent.rollouts.llama_decoder`; with adapters."""
MOVED = 30
"""Bytes that AdamW moves for a weight: its gradient, 4; master and moments read and written, 24; its bf16 copy, 2."""


def speeds(card: Card, facts: ModelFacts, work: Work, stage: str, ranks: int = 1) -> Speeds:
    """Return the seconds of a sequence, of a token and of an optimizer step on a card, for a stage of which one of the
    ranks has the `facts`. The optimizer of weights that are cut steps on its shard."""
    facts = at_once(facts)
    peak, length = TRAINED * card.flops, work.prompt + work.answer
    learning = {learner.part: learner for learner in learners(facts, stage)}
    learnt = {part: _learnt(facts, learner, work) / peak for part, learner in learning.items()}
    shares = {part: ranks if learner.whole and is_cut(facts, learner) else 1 for part, learner in learning.items()}
    moved = {part: learner.trained * MOVED / shares[part] for part, learner in learning.items()}
    stepped = {part: count / (DECODED * card.bandwidth) for part, count in moved.items()}
    scored = forward(facts.reward_shape, length, 0) / peak
    return Speeds(
        learn_policy=learnt.get("policy", 0.0),
        learn_critic=learnt.get("critic", 0.0),
        learn_reward=learnt.get("reward", 0.0),
        measure=2 * forward(facts.shape, length, work.answer) / peak,
        value=scored,
        score=scored,
        read=forward(facts.shape, work.prompt, 1) / peak,
        token=token(card, facts, work, rows_at_once(facts, stage)),
        step_policy=stepped.get("policy", 0.0),
        step_scorer=stepped.get("critic", stepped.get("reward", 0.0)),
        start=0.0,
    )


def forward(shape: Shape, tokens: int, states: int) -> float:
    """Return the FLOP of a forward pass over a sequence, with the logits of `states` of its tokens."""
    attention = 2 * tokens**2 * shape.query * shape.layers
    return 2 * tokens * shape.linear + attention + 2 * states * shape.vocab_size * shape.hidden_size


def training(shape: Shape, tokens: int, states: int, whole: bool, again: bool) -> float:
    """Return the FLOP of the gradients of a sequence, of every weight if `whole`; `again`: activations are computed
    twice."""
    layers = forward(shape, tokens, 0)
    attention = layers - 2 * tokens * shape.linear
    head = 2 * states * shape.vocab_size * shape.hidden_size
    backward = (1 + whole) * (layers - attention + head) + 2 * attention
    return layers + head + backward + again * layers


def token(card: Card, facts: ModelFacts, work: Work, rows: int) -> float:
    """Return the seconds of one token of one of `rows` answers: of reading all weights and the keys and values of all
    rows, of the products, or of telling the card what to do, whichever takes longest."""
    shape, b = facts.shape, facts.bytes
    cached = kv_cache(shape, rows, work.prompt + work.answer // 2, b)
    weights = facts.frozen(shape, shape.linear + shape.vocab_size * shape.hidden_size)
    products = 2 * rows * (shape.linear + shape.vocab_size * shape.hidden_size)
    told = LAUNCH * shape.layers * (ADAPTED if tuned_rank(facts) else OPERATIONS)
    return max((weights + cached) / (DECODED * card.bandwidth), products / (TRAINED * card.flops), told) / rows


def rows_at_once(facts: ModelFacts, stage: str) -> int:
    """Return the answers that a stage decodes at once."""
    recipe = facts.recipe
    prompts: Mapping[str, int] = {
        "reward": REWARD_SAMPLES,
        "ppo": recipe.ppo.batch_size,
        "rejection": recipe.rejection.samples * min(recipe.rejection.prompts, facts.prompts["train"]),
        "infer": recipe.infer.best_of * min(recipe.infer.max_prompts or facts.prompts["test"], facts.prompts["test"]),
    }
    return max(1, min(decided(recipe.sampler.rows), prompts.get(stage, 1)))


def _learnt(facts: ModelFacts, learner: Learner, work: Work) -> float:
    """Return the FLOP of the gradients of a sequence."""
    states = work.answer if learner.part == "policy" else 0
    again = facts.recipe.gradient_checkpointing
    return training(learner.shape, work.prompt + work.answer, states, learner.whole, again)
