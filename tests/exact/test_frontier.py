"""The frontier of reward against KL where reward is Gaussian, on a grid; the KL is the project's.

For r ~ N(m, s^2) under the reference the optimum at beta gains s^2 / beta for s^2 / (2 beta^2) nats, so the gain is
s sqrt(2 KL): a point above that line would say that the KL is measured too small.
"""

import pytest
import torch

from preferent.models import vocabulary

F64 = torch.float64


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("deviation", [0.5, 1.5])
def test_the_optimum_lies_on_the_line(beta: float, deviation: float) -> None:
    worth = 0.3 + deviation * torch.linspace(-14, 14, 4001, dtype=F64)
    reference = -(((worth - 0.3) / deviation) ** 2) / 2
    tilted = reference + worth / beta
    _, _, kl, _ = vocabulary.measures(tilted[None], reference[None], torch.tensor([0]))
    gain = (tilted.softmax(-1) * worth).sum().item() - 0.3
    assert gain == pytest.approx(deviation**2 / beta, rel=1e-8)
    assert kl.item() == pytest.approx(deviation**2 / (2 * beta**2), rel=1e-8)
    assert gain == pytest.approx(deviation * (2 * kl.item()) ** 0.5, rel=1e-8)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_gold_follows_the_proxy_by_the_square_of_their_correlation(noise: float) -> None:
    """Proxy = gold + independent Gaussian noise: the gold's gain is 1 / (1 + noise^2) of the proxy's at any KL."""
    axis = torch.linspace(-9, 9, 301, dtype=F64)
    gold, error = axis[:, None].expand(301, 301).reshape(-1), (noise * axis).expand(301, 301).reshape(-1)
    reference = -(gold**2 + (error / noise) ** 2) / 2
    proxy, share = gold + error, 1 / (1 + noise**2)
    for beta in (4.0, 2.0, 1.0):
        tilted = reference + proxy / beta
        chance = tilted.softmax(-1)
        _, _, kl, _ = vocabulary.measures(tilted[None], reference[None], torch.tensor([0]))
        assert (chance * gold).sum().item() == pytest.approx(share * (chance * proxy).sum().item(), rel=1e-6)
        assert (chance * gold).sum().item() == pytest.approx((2 * share * kl.item()) ** 0.5, rel=1e-6)
