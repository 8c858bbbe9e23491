"""A token MDP of which every answer can be written down: letters a, b, c and an end, at most three tokens.

A state is what was said so far. Shapes: S states, K tokens, Y answers, A positions; all in fp64.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from preferent.models import vocabulary

LETTERS, END, LONGEST = 3, 3, 3
BETA = 0.5


def answers() -> list[tuple[int, ...]]:
    """Letters closed by the end, or as many letters as fit."""
    ended = [(*said, END) for length in range(LONGEST) for said in itertools.product(range(LETTERS), repeat=length)]
    return ended + list(itertools.product(range(LETTERS), repeat=LONGEST))


@dataclass(frozen=True)
class Mdp:
    """Every answer, padded with the end: `ids`, `states` and `mask` [Y, A]; the reference's logits [S, K], and what
    each answer is worth [Y]."""

    ids: Tensor
    states: Tensor
    mask: Tensor
    reference: Tensor
    worth: Tensor

    @classmethod
    def drawn(cls, seed: int) -> "Mdp":
        generator = torch.Generator().manual_seed(seed)
        every = answers()
        places = {
            said: i for i, said in enumerate(sorted({answer[:t] for answer in every for t in range(len(answer))}))
        }
        ids = torch.tensor([[*answer, *[END] * (LONGEST - len(answer))] for answer in every])
        mask = torch.tensor([[t < len(answer) for t in range(LONGEST)] for answer in every])
        states = torch.tensor([[places.get(answer[:t], 0) for t in range(LONGEST)] for answer in every])
        drawn = torch.randn(len(places), END + 1, generator=generator, dtype=torch.float64)
        worth = torch.randn(len(every), generator=generator, dtype=torch.float64)
        return cls(ids, states, mask, drawn, worth)

    def log_probs(self, logits: Tensor) -> Tensor:
        """Of every token of every answer [Y, A] under logits [S, K], by the project's own function; 0 at padding."""
        flat = vocabulary.log_probs_of(logits[self.states[self.mask]], self.ids[self.mask])
        return torch.zeros(self.mask.shape, dtype=flat.dtype).masked_scatter(self.mask, flat)

    def optimum(self, beta: float) -> tuple[Tensor, Tensor]:
        """The optimal policy's logits [S, K] and the value of every state [S], by backward induction:
        V(s) = beta log sum_a ref(a|s) exp(V(s a) / beta), pi*(a|s) = ref(a|s) exp((V(s a) - V(s)) / beta)."""
        reference = self.reference.log_softmax(-1)
        after = torch.zeros_like(reference)
        values = torch.zeros(len(reference), dtype=torch.float64)
        for t in reversed(range(LONGEST)):
            last = self.mask.sum(-1) == t + 1
            here = self.mask[:, t]
            following = self.worth if t + 1 == LONGEST else torch.where(last, self.worth, values[self.states[:, t + 1]])
            after[self.states[here, t], self.ids[here, t]] = following[here]
            visited = self.states[here, t].unique()
            values[visited] = beta * (reference + after / beta).logsumexp(-1)[visited]
        return reference + (after - values[:, None]) / beta, values
