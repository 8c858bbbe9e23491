"""The page with sliders: its numbers are NumPy's, and it opens from disk for anybody."""

from pathlib import Path

import numpy as np
import pytest
from browser import chromium, overflow, violations, visit  # noqa: F401 - a fixture

town = pytest.importorskip("town", reason="the lessons need pip install 'preferent[lessons]'")

PAGE = Path(__file__).resolve().parents[2] / "docs/lessons/leash.html"
SETTINGS = [(0.5, 0.2, 0.95), (0.05, 0.2, 0.0), (5.0, 0.02, 1.0), (2.0, 1.0, 0.95), (0.1, 0.1, 0.5)]
STEPS, EPOCHS, CRITIC_RATE = 20, 4, 0.1

pytestmark = pytest.mark.acceptance


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def learned(beta, clip, lam):
    """PPO on the expectation over all walks, in NumPy: the policy, the critic, and reward and KL after each step."""
    walks, rows = town.every_walk(), np.arange(31)
    habit = np.tile(town.HABIT, (town.CHOICES, 1))
    logits, critic, last = habit.copy(), np.zeros(town.CHOICES), walks.mask.sum(1) - 1
    path = [town.measure(log_softmax(logits), town.GOLD)]
    for _ in range(STEPS):
        old = log_softmax(logits)
        took = np.where(walks.mask, old[walks.corners, walks.moves], 0)
        weight = np.exp(took.sum(1))[:, None]
        rewards = np.where(walks.mask, -beta * (old - habit)[walks.corners, walks.moves], 0)
        rewards[rows, last] += town.GOLD[walks.ends]
        values, advantages = np.where(walks.mask, critic[walks.corners], 0), np.zeros(rewards.shape)
        following = following_value = np.zeros(31)
        for t in reversed(range(town.LONGEST)):
            delta = rewards[:, t] + following_value - values[:, t]
            following = np.where(walks.mask[:, t], delta + lam * following, 0)
            advantages[:, t], following_value = following, values[:, t]
        for _ in range(EPOCHS):
            now = log_softmax(logits)
            ratio = np.exp(np.where(walks.mask, now[walks.corners, walks.moves] - took, 0))
            clipped = ((advantages > 0) & (ratio > 1 + clip)) | ((advantages < 0) & (ratio < 1 - clip))
            slope = np.zeros_like(logits)
            pulls = np.where(walks.mask & ~clipped, weight * advantages * ratio, 0)
            np.add.at(slope, (walks.corners, walks.moves), pulls)
            logits = logits + (slope - np.exp(now) * slope.sum(1, keepdims=True)) / max(1, beta)
        mass, total = np.zeros(town.CHOICES), np.zeros(town.CHOICES)
        np.add.at(mass, walks.corners, np.where(walks.mask, weight, 0))
        np.add.at(total, walks.corners, np.where(walks.mask, weight * (advantages + values), 0))
        critic = critic + CRITIC_RATE * (total / mass - critic)
        path.append(town.measure(log_softmax(logits), town.GOLD))
    return log_softmax(logits), critic, np.array(path)


def test_the_numbers_are_numpys(chromium):  # noqa: F811
    address = PAGE.as_uri()
    with visit(chromium, address) as page:
        page.goto(address)
        for beta, clip, lam in SETTINGS:
            best, values = town.optimum(town.GOLD, beta)
            theirs = page.evaluate(
                "beta => { const o = optimum(beta); return [o.policy, o.values, measure(o.policy)] }", beta
            )
            assert np.allclose(theirs[0], best, rtol=0, atol=1e-12) and np.allclose(
                theirs[1], values, rtol=0, atol=1e-12
            )
            reward, kl = town.measure(best, town.GOLD)
            assert abs(theirs[2]["reward"] - reward) < 1e-12 and abs(theirs[2]["kl"] - kl) < 1e-12
            assert abs(values[0] - (reward - beta * kl)) < 1e-12
            policy, critic, path = learned(beta, clip, lam)
            found = page.evaluate("([b, c, l]) => learned(b, c, l)", [beta, clip, lam])
            assert np.abs(np.array(found["policy"]) - policy).max() < 1e-12
            assert np.abs(np.array(found["critic"]) - critic).max() < 1e-12
            assert np.abs(np.array([[p["reward"], p["kl"]] for p in found["path"]]) - path).max() < 1e-12


def test_the_page_shows_what_it_computes(chromium):  # noqa: F811
    address = PAGE.as_uri()
    with visit(chromium, address) as page:
        page.goto(address)
        page.locator("#lambda").focus()
        page.keyboard.press("Home")
        assert page.locator("#lambda-out").inner_text() == "0.00"
        page.locator("#beta").focus()
        page.keyboard.press("End")
        assert page.locator("#beta-out").inner_text() == "5.00"
        reward, kl = learned(5.0, 0.2, 0.0)[2][-1]
        best = town.optimum(town.GOLD, 5.0)[1][0]
        start = learned(5.0, 0.2, 0.0)[2][0][0]
        assert page.locator("#ppo-reward").inner_text() == f"{reward:.3f}"
        assert page.locator("#best-objective").inner_text() == f"{best:.3f}"
        missing = 100 * (best - (reward - 5 * kl)) / (best - start)
        assert f"misses {missing:.1f} %" in page.locator("#summary").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_anybody_can_use_the_page(chromium, scheme, width):  # noqa: F811
    address = PAGE.as_uri()
    assert PAGE.stat().st_size <= 60_000
    with visit(chromium, address, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        page.goto(address)
        assert overflow(page) == 0
        assert violations(page) == []
