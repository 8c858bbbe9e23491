"""Selection of pairs: the probabilities are exact, and rates weighted by them are unbiased."""

import dataclasses

import numpy as np
import pytest

from preferent import randomness
from preferent.data.types import Judgment, Prompt
from preferent.errors import DataError
from preferent.labeling import selection
from preferent.labeling.questions import Question


def judgment(id, a, b, choice="A", confidence=0.75, name="judge", **extra):
    return Judgment(id, "", "p", a, b, choice, confidence, name, extra=extra)


def questions(count):
    return [Question(f"r{i}", Prompt(input_text=f"prompt {i}"), f"a{i}", f"b{i}") for i in range(count)]


def test_a_judge_says_how_probable_it_is_that_a_is_better():
    assert selection.probability_a(judgment("x", "a", "b", score_a=1.0, score_b=1.0)) == 0.5
    assert selection.probability_a(judgment("x", "a", "b", score_a=2.0, score_b=0.0)) == pytest.approx(0.8807970779)
    assert selection.probability_a(judgment("x", "a", "b", score_a=-1e9, score_b=1e9)) == pytest.approx(0)
    said = [selection.probability_a(judgment("x", "a", "b", choice, 0.9)) for choice in ("A", "B", "tie")]
    assert said == pytest.approx([0.9, 0.1, 0.5])


def test_one_judge_is_informative_where_it_is_unsure_and_several_where_they_disagree():
    assert [selection.informativeness([p]) for p in (0.0, 0.5, 0.75, 1.0)] == [0, 1, 0.5, 0]
    assert selection.informativeness([0.9, 0.2, 0.5]) == pytest.approx(0.7)
    assert selection.informativeness([0.5, 0.5]) == 0


def test_a_judgment_of_the_pair_turned_round_is_turned_back():
    asked = questions(2)
    rows = [judgment(each.id, each.a, each.b, "A", 0.9) for each in asked]
    rows += [judgment(each.id, each.b, each.a, "A", 0.8, "other") for each in asked[:1]]
    rows += [judgment(each.id, each.a, each.b, "A", 0.8, "other") for each in asked[1:]]
    assert selection._informativeness(asked, rows) == pytest.approx([0.7, 0.1])


def test_inclusion_is_proportional_capped_and_adds_up():
    weights = np.array([1.0, 1.0, 2.0, 4.0])
    assert selection.inclusion(weights, 2) == pytest.approx([0.25, 0.25, 0.5, 1.0])
    assert selection.inclusion(weights, 3) == pytest.approx([0.5, 0.5, 1.0, 1.0])
    assert selection.inclusion(weights, 4) == pytest.approx([1.0] * 4)
    assert selection.inclusion(np.ones(8), 2) == pytest.approx([0.25] * 8)


@pytest.mark.parametrize("start", [0.0, 0.3, 0.999999])
def test_a_systematic_draw_takes_as_many_as_the_probabilities_add_up_to(start):
    weights = randomness.uniforms(0, "test", 0, np.arange(1000)) + 0.01
    chosen = selection.systematic(selection.inclusion(weights, 150), np.arange(1000), start)
    assert len(chosen) == len(set(chosen)) == 150


def test_every_place_is_drawn_with_exactly_its_probability():
    found = selection.inclusion(np.array([0.2, 0.5, 1.0, 1.3, 0.4, 0.1]), 3)
    order = np.array([3, 0, 5, 1, 4, 2])
    starts = (np.arange(20_000) + 0.5) / 20_000  # all of [0, 1), evenly
    counts = np.zeros(6)
    for start in starts:
        counts[selection.systematic(found, order, start)] += 1
    assert counts / 20_000 == pytest.approx(found, abs=1e-4)


def world(count=400):
    """Pairs that a judge is unsure of, and that a therefore wins less often: a draw that favours them is not fair."""
    margin = 6 * randomness.uniforms(0, "margin", 0, np.arange(count))
    asked = questions(count)
    judgments = [
        judgment(question.id, question.a, question.b, score_a=float(m), score_b=0.0)
        for question, m in zip(asked, margin, strict=True)
    ]
    wins = (randomness.uniforms(0, "win", 0, np.arange(count)) < 1 / (1 + np.exp(-margin))).astype(float)
    return asked, judgments, {question.id: win for question, win in zip(asked, wins, strict=True)}


def test_weighted_rates_are_unbiased_and_unweighted_ones_are_not():
    asked, judgments, won = world()
    truth = np.mean(list(won.values()))
    horvitz_thompson, hajek, plain = [], [], []
    for seed in range(400):
        chosen = selection.choose(asked, 80, "informative", judgments, seed)
        weight = np.array([1 / question.probability for question in chosen])
        win = np.array([won[question.id] for question in chosen])
        horvitz_thompson.append(np.sum(weight * win) / len(asked))
        hajek.append(np.sum(weight * win) / np.sum(weight))
        plain.append(np.mean(win))

    def off(rates):
        """Standard errors between the mean rate and the truth."""
        return abs(np.mean(rates) - truth) / (np.std(rates) / np.sqrt(len(rates)))

    assert off(horvitz_thompson) < 3 and off(hajek) < 3
    assert off(plain) > 10
    assert np.mean(plain) < truth - 0.05


def test_a_random_draw_gives_everybody_the_same_chance():
    asked = questions(60)
    times = dict.fromkeys((question.id for question in asked), 0)
    for seed in range(300):
        chosen = selection.choose(asked, 20, "random", [], seed)
        assert len(chosen) == 20 and {question.probability for question in chosen} == {20 / 60}
        for question in chosen:
            times[question.id] += 1
    assert all(60 < count < 140 for count in times.values())


def test_a_draw_depends_on_the_seed_and_not_on_the_order():
    asked = questions(100)
    first = selection.choose(asked, 10, "random", [], 1)
    assert {each.id for each in selection.choose(asked[::-1], 10, "random", [], 1)} == {each.id for each in first}
    assert {each.id for each in selection.choose(asked, 10, "random", [], 2)} != {each.id for each in first}


def test_identical_answers_are_kept_in_the_share_of_the_others():
    asked = questions(400)
    same = [dataclasses.replace(question, id=f"s{i}", b=question.a) for i, question in enumerate(questions(200))]
    chosen = selection.choose([*asked, *same], 100, "random", [], 3)
    assert sum(not question.identical for question in chosen) == 100
    assert sum(question.identical for question in chosen) == 50
    assert {question.probability for question in chosen} == {0.25}


def test_all_are_asked_where_no_number_says_otherwise():
    asked = questions(10)
    assert selection.choose(asked, None, "informative", [], 1) == asked
    assert selection.choose(asked, 99, "random", [], 1) == asked
    assert {question.probability for question in asked} == {1.0}


def test_pairs_without_a_judgment_of_these_answers_are_named():
    asked, judgments, _ = world(20)
    with pytest.raises(DataError, match=r"1 of 20 pairs.*r3"):
        selection.choose(asked, 5, "informative", [each for each in judgments if each.id != "r3"], 1)
    with pytest.raises(DataError, match="20 of 20"):
        selection.choose(
            asked, 5, "informative", [dataclasses.replace(each, response_a="other") for each in judgments], 1
        )
    turned = [dataclasses.replace(each, response_a=each.response_b, response_b=each.response_a) for each in judgments]
    assert len(selection.choose(asked, 5, "informative", turned, 1)) == 5


def test_questions_with_the_same_id_are_told_apart_by_their_answers():
    asked = [Question("r", Prompt(input_text=f"p{i}"), f"a{i}", f"b{i}") for i in range(2)]
    rows = [judgment("r", "a0", "b0", "A", 0.9), judgment("r", "b1", "a1", "A", 0.6)]
    assert selection._informativeness(asked, rows) == pytest.approx([0.2, 0.8])
