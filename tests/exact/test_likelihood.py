"""Log-probabilities in chunks: how often the head is applied says what is kept for the backward pass."""

import pytest
import torch
from torch import Tensor

from preferent.models import vocabulary

TOKENS, WIDTH, VOCABULARY = 12, 4, 5


@pytest.mark.parametrize(
    ("elements", "gradient", "calls"),
    [
        (VOCABULARY * TOKENS, True, 1),
        (VOCABULARY * TOKENS - 1, True, 4),
        (VOCABULARY * 3, True, 8),
        (VOCABULARY * 3, False, 4),
        (1, True, 2 * TOKENS),
        (1, False, TOKENS),
    ],
)
def test_logits_are_kept_up_to_a_number_and_computed_twice_above_it(
    monkeypatch: pytest.MonkeyPatch, elements: int, gradient: bool, calls: int
) -> None:
    """Once a chunk, and once more a chunk in the backward pass; a chunk holds at least one token, and all where they
    fit exactly."""
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", elements)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).requires_grad_(gradient)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    ids = torch.arange(TOKENS) % VOCABULARY
    seen: list[int] = []

    def head(states: Tensor) -> Tensor:
        seen.append(len(states))
        return states @ weight.T

    with torch.set_grad_enabled(gradient):
        found = vocabulary.chunked_log_probs(hidden, ids, head, VOCABULARY)
    if gradient:
        (slope,) = torch.autograd.grad(found.sum(), weight)
        probabilities = (hidden @ weight.T).detach().softmax(-1)
        wanted = (torch.nn.functional.one_hot(ids, VOCABULARY) - probabilities).T @ hidden
        assert torch.allclose(slope, wanted, atol=1e-13)
    assert len(seen) == calls
    expected = (hidden @ weight.T).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    assert torch.allclose(found, expected, atol=1e-14)
