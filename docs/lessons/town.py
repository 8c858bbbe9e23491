"""The town of lesson 1: answers are walks, so few that every one can be written down and drawn.

A walk starts at the station, corner (0, 0). Each move goes one corner east or north, or stops; after four moves the
walk is over. The 15 corners have indices in the order of their distance from the station; on the 10 nearest there is a
choice of three moves. Arrays: C corners [15], K corners with a choice [10], M moves [3] (east, north, stop), W walks
[31].
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

LONGEST = 4
CORNERS = [(far - y, y) for far in range(LONGEST + 1) for y in range(far + 1)]
PLACE = {corner: index for index, corner in enumerate(CORNERS)}
CHOICES = sum(x + y < LONGEST for x, y in CORNERS)
EAST, NORTH, STOP = range(3)
LETTERS = "en"
NEXT = np.array([[PLACE[x + 1, y], PLACE[x, y + 1], PLACE[x, y]] for x, y in CORNERS[:CHOICES]])
"""[K, M]: where a move leads; to stop leads nowhere."""

GOLD = np.array([-1.5, -1.5, 0.5, -1, 1, 0.5, -2, 2, 0.5, 3, -3, -1, 0, 1, 0.5])
"""[C]: how much people like a walk that ends there, most the bakery (0, 3), least the ring road (4, 0)."""

NAMES = {(0, 0): "station", (0, 3): "bakery", (2, 1): "lake", (4, 0): "ring road"}
HABIT = np.log(np.array([0.45, 0.3, 0.25]))
"""[M]: log-probabilities of the moves before tuning, the same at every corner: this guide likes to go east."""


@dataclass(frozen=True)
class Walks:
    """Every walk: its text, the corners where it moves, its moves, which positions count, and where it ends."""

    texts: list[str]
    corners: np.ndarray
    moves: np.ndarray
    mask: np.ndarray
    ends: np.ndarray


def every_walk() -> Walks:
    """Return all 31 walks; `corners` and `moves` are [W, 4], padded with 0 where `mask` is False."""
    texts = ["".join(way) for n in range(LONGEST + 1) for way in itertools.product(LETTERS, repeat=n)]
    corners, moves, mask = (np.zeros((len(texts), LONGEST), kind) for kind in (int, int, bool))
    ends = np.zeros(len(texts), int)
    for row, text in enumerate(texts):
        at = 0
        for column, letter in enumerate((text + ".")[:LONGEST]):
            corners[row, column], moves[row, column], mask[row, column] = at, (LETTERS + ".").index(letter), True
            at = NEXT[at, moves[row, column]]
        ends[row] = at
    return Walks(texts, corners, moves, mask, ends)


def draw(axis: plt.Axes, log_policy: np.ndarray, title: str) -> None:
    """Draw a policy [K, M]: lines as wide as a move is frequent, discs as large as the share that ends there."""
    arrived, ended = np.zeros(len(CORNERS)), np.zeros(len(CORNERS))
    arrived[0] = 1
    for corner, moves in enumerate(np.exp(np.asarray(log_policy))):
        for move in (EAST, NORTH):
            there, share = NEXT[corner, move], arrived[corner] * moves[move]
            arrived[there] += share
            (x, y), (to_x, to_y) = CORNERS[corner], CORNERS[there]
            axis.plot([x, to_x], [y, to_y], color="#1f6fb4", linewidth=0.4 + 9 * share, alpha=0.45, zorder=1)
        ended[corner] = arrived[corner] * moves[STOP]
    ended[CHOICES:] = arrived[CHOICES:]
    worth = axis.scatter(
        *np.transpose(CORNERS), s=15 + 900 * ended, c=GOLD, cmap="RdYlGn", vmin=-3, vmax=3, edgecolors="#333", zorder=2
    )
    for (x, y), name in NAMES.items():
        axis.annotate(name, (x, y), xytext=(5, 8), textcoords="offset points", fontsize=8)
    axis.set(title=title, xlim=(-0.5, 4.6), ylim=(-0.5, 4.5), xticks=range(5), yticks=range(5), aspect="equal")
    axis.grid(False)
    worth.set_clip_on(False)


def optimum(rewards: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return log pi* [K, M] and the values [C] of the corners, from the last corners to the first.

    V(c) = beta log sum_m ref(m|c) exp(V(c m) / beta), pi*(m|c) = ref(m|c) exp((V(c m) - V(c)) / beta). An exercise
    and the test of the page use it; the lesson derives it.
    """
    values, log_policy = rewards.copy(), np.zeros((CHOICES, 3))
    for corner in reversed(range(CHOICES)):
        after = np.append(values[NEXT[corner, :STOP]], rewards[corner])
        values[corner] = beta * np.logaddexp.reduce(HABIT + after / beta)
        log_policy[corner] = HABIT + (after - values[corner]) / beta
    return log_policy, values


def measure(log_policy: np.ndarray, rewards: np.ndarray) -> tuple[float, float]:
    """Return the expected reward and the KL to the habit, in nats per walk, by going through all walks."""
    walks = every_walk()
    ratios = np.where(walks.mask, (log_policy - HABIT)[walks.corners, walks.moves], 0).sum(-1)
    p = np.exp(np.where(walks.mask, log_policy[walks.corners, walks.moves], 0).sum(-1))
    return float(p @ rewards[walks.ends]), float(p @ ratios)


def write_model(folder: Path, seed: int = 0) -> None:
    """Write a Llama of 20,000 parameters whose only words are the moves, in the layout of Hugging Face.

    It has learned the habit from all 31 walks: its log-probability of each is within 0.01 of the table's.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = {"e": EAST, "n": NORTH, "</s>": STOP, "<pad>": 3, "?": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["</s>", "<pad>"])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "pad_token": "<pad>"}))
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=None, eos_token_id=STOP, pad_token_id=3, initializer_range=0.15,
    )  # fmt: skip
    walks = every_walk()
    ids = torch.as_tensor(np.where(walks.mask, walks.moves, 3))
    p = torch.as_tensor(np.exp(np.where(walks.mask, HABIT[walks.moves], 0).sum(-1)), dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 300)
    for _ in range(300):
        optimizer.zero_grad()
        (-(p * walk_log_probs(model, ids, torch.as_tensor(walks.mask))).sum()).backward()
        optimizer.step()
        decay.step()
    model.save_pretrained(folder)


def walk_log_probs(model: Any, ids: Any, mask: Any) -> Any:
    """Return the log-probability [W] of each walk, token ids [W, 4], as the answer to `?` under a language model.

    The token of padding is never said, as in `preferent`.
    """
    import torch

    asked = torch.full((len(ids), 1), 4)
    logits = model(input_ids=torch.cat([asked, ids], 1)).logits[:, :-1].clone()
    logits[..., 3] = -torch.inf
    picked = logits.log_softmax(-1).gather(-1, ids[..., None].where(mask[..., None], 0)).squeeze(-1)
    return torch.where(mask, picked, 0).sum(-1)
