"""Problems small enough to enumerate: a tiny Llama over a few letters, every answer it can give, and the exact optimum.

The KL-regularised optimum is pi*(y|x) = ref(y|x) exp(r(x, y) / beta) / Z(x), with J* = beta * mean log Z (Ziegler et
al. 2019, section 2.1). Rewards come from `reward`, a user function as `reward.sources` names it.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

LETTERS = "abc"
PROMPTS = "vwxyz"
EOS, PAD = 3, 4
IDS = {letter: id for id, letter in [*enumerate(LETTERS), *enumerate(PROMPTS, start=5)]}
REWARDS: dict[tuple[str, str], float] = {}


def reward(prompts: list[str], answers: list[str]) -> list[float]:
    """The table of the problem at hand; an answer with a prompt's letter in it, as good as impossible, is worth -10."""
    return [REWARDS.get((prompt, answer), -10.0) for prompt, answer in zip(prompts, answers, strict=True)]


@dataclass(frozen=True)
class Problem:
    """A folder with the reference model, its prompts, and how long an answer may be."""

    folder: Path
    prompts: tuple[str, ...]
    max_tokens: int
    temperature: float

    def answers(self) -> list[list[int]]:
        """Every answer: letters closed by EOS, or as many letters as fit."""
        found: list[list[int]] = []
        for length in range(self.max_tokens):
            found += [[*letters, EOS] for letters in itertools.product(range(len(LETTERS)), repeat=length)]
        return found + [list(letters) for letters in itertools.product(range(len(LETTERS)), repeat=self.max_tokens)]

    def texts(self) -> list[str]:
        return ["".join(LETTERS[i] for i in answer if i != EOS) for answer in self.answers()]

    def log_probs(self, folder: Path) -> np.ndarray:
        """log pi(y|x) of every prompt and answer under the model in a folder, float64 [prompts, answers]."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        rows = [self._log_probs(model, prompt) for prompt in self.prompts]
        return np.stack(rows)

    @torch.no_grad()
    def _log_probs(self, model: LlamaForCausalLM, prompt: str) -> np.ndarray:
        asked = [IDS[letter] for letter in prompt]
        width = len(asked) + self.max_tokens
        ids = torch.tensor([(asked + answer + [PAD] * width)[:width] for answer in self.answers()])
        logits = model(input_ids=ids).logits.double() / self.temperature
        logits[..., PAD] = -torch.inf
        picked = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
        keep = torch.tensor([[i < len(answer) for i in range(self.max_tokens)] for answer in self.answers()])
        return torch.where(keep, picked[:, len(asked) - 1 :], 0.0).sum(-1).numpy()

    def table(self) -> np.ndarray:
        """r(x, y) of every prompt and answer, float64 [prompts, answers]."""
        return np.array([reward([prompt] * len(self.texts()), self.texts()) for prompt in self.prompts])


def make(folder: Path, prompts: tuple[str, ...], max_tokens: int, temperature: float, seed: int) -> Problem:
    """Write a random reference model with its tokenizer and prompts."""
    tokenizer = Tokenizer(models.BPE(vocab={**IDS, "</s>": EOS, "<pad>": PAD}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["</s>", "<pad>"])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "pad_token": "<pad>"}))
    config = LlamaConfig(
        vocab_size=len(IDS) + 2, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=None, eos_token_id=EOS, pad_token_id=PAD, initializer_range=0.15,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with torch.no_grad():  # a constant feature, by which the letters of the prompts are as good as never an answer
        model.get_input_embeddings().weight[:, 0] = 2.0
        for layer in model.base_model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[[IDS[letter] for letter in PROMPTS], 0] = -40.0
    model.save_pretrained(folder)
    rows = "".join(json.dumps({"input_text": prompt}) + "\n" for prompt in prompts)
    (folder / "prompts.jsonl").write_text(rows)
    return Problem(folder, prompts, max_tokens, temperature)


def random_rewards(problem: Problem, seed: int) -> None:
    """Fill the table with draws of mean 0 whose standard deviation under the reference is 1.

    An answer's reward is a sum over its tokens of one draw for each (prompt, token before, token).
    """
    raw = np.array([[_additive(seed, prompt, answer) for answer in problem.answers()] for prompt in problem.prompts])
    p = np.exp(problem.log_probs(problem.folder))
    mean = (p * raw).sum(-1, keepdims=True)
    scale = np.sqrt((p * (raw - mean) ** 2).sum(-1).mean())
    fill(problem, (raw - mean) / scale)


def _additive(seed: int, prompt: str, answer: Sequence[int]) -> float:
    before = [IDS[prompt[-1]], *answer[:-1]]
    return sum(_uniform(f"{seed} {prompt} {one} {other}") for one, other in zip(before, answer, strict=True))


def fill(problem: Problem, table: np.ndarray) -> None:
    """Make `table` [prompts, answers] the reward."""
    REWARDS.clear()
    for prompt, row in zip(problem.prompts, table, strict=True):
        REWARDS.update({(prompt, text): float(value) for text, value in zip(problem.texts(), row, strict=True)})


def _uniform(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") / 2**64


@dataclass(frozen=True)
class Outcome:
    """How near a policy is to the optimum: `gap` = (J* - J) / (J* - J_ref); `spread` = sd(r - beta * log-ratio) under
    the policy, over sd(r) under the reference; expected reward and KL."""

    gap: float
    spread: float
    reward: float
    kl: float


def outcome(problem: Problem, policy: Path, beta: float) -> Outcome:
    """Compare the policy in a folder with the optimum by enumeration."""
    table, reference, tuned = problem.table(), problem.log_probs(problem.folder), problem.log_probs(policy)
    p, q = np.exp(reference), np.exp(tuned)
    assert np.allclose(p.sum(-1), 1, atol=1e-3) and np.allclose(q.sum(-1), 1, atol=1e-3), "there are other answers"
    best = beta * np.log((p * np.exp(table / beta)).sum(-1)).mean()
    kl = (q * (tuned - reference)).sum(-1).mean()
    value, start = (q * table).sum(-1).mean() - beta * kl, (p * table).sum(-1).mean()
    residual = table - beta * (tuned - reference)
    return Outcome(
        float((best - value) / (best - start)),
        float(_deviation(q, residual) / _deviation(p, table)),
        float((q * table).sum(-1).mean()),
        float(kl),
    )


def _deviation(p: np.ndarray, values: np.ndarray) -> float:
    """Root mean square over prompts of the standard deviation within a prompt."""
    mean = (p * values).sum(-1, keepdims=True)
    return float(np.sqrt((p * (values - mean) ** 2).sum(-1).mean()))


def set_distribution(problem: Problem, probabilities: Sequence[float]) -> None:
    """Rewrite the output head so that the token after the first prompt is a, b, c or EOS with these probabilities."""
    model = LlamaForCausalLM.from_pretrained(problem.folder)
    with torch.no_grad():
        asked = torch.tensor([[IDS[letter] for letter in problem.prompts[0]]])
        state = model.base_model(asked).last_hidden_state[0, -1].clone()
        state[0] = 0.0
        wanted = problem.temperature * torch.tensor(probabilities).log()
        model.lm_head.weight[: len(probabilities)] = wanted[:, None] * state / state.square().sum()
    model.save_pretrained(problem.folder)
