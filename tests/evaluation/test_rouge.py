"""ROUGE on worked examples, and the longest common subsequence against its definition."""

from itertools import product

import pytest

from preferent.evaluation.statistics import rouge


def test_worked_example() -> None:
    """Lin 2004, 3.1: "police kill the gunman" has 3 of 4 words of the reference in order, the other only 2."""
    reference = "police killed the gunman"
    assert rouge.scores(reference, "police kill the gunman") == {"rouge1": 0.75, "rouge2": 1 / 3, "rougeL": 0.75}
    assert rouge.scores(reference, "the gunman kill police") == {"rouge1": 0.75, "rouge2": 1 / 3, "rougeL": 0.5}


def test_unequal_lengths() -> None:
    """Three of five reference words, three of four given: P 3/4, R 3/5, F1 2/3; bigrams: 1 of 4 and 1 of 3."""
    scores = rouge.scores("the cat sat on mats", "the cat is on")
    assert scores == pytest.approx({"rouge1": 2 / 3, "rouge2": 2 / 7, "rougeL": 2 / 3})


def test_repeated_words_count_as_often_as_in_both() -> None:
    assert rouge.scores("the the cat", "the the the") == pytest.approx(
        {"rouge1": 2 / 3, "rouge2": 0.5, "rougeL": 2 / 3}
    )


def test_case_and_punctuation_do_not_count_and_nothing_is_stemmed() -> None:
    assert rouge.tokens("Don't-stop; 42 Times") == ["don", "t", "stop", "42", "times"]
    assert rouge.scores("It IS good.", "it is... good")["rougeL"] == 1.0
    assert rouge.scores("run", "running")["rouge1"] == 0.0


@pytest.mark.parametrize(("reference", "answer"), [("", "a"), ("a", ""), ("", ""), ("...", "?"), ("日本", "日本")])
def test_nothing_to_match_is_zero(reference: str, answer: str) -> None:
    assert rouge.scores(reference, answer) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def test_a_single_word_has_no_pairs() -> None:
    assert rouge.scores("yes", "yes") == {"rouge1": 1.0, "rouge2": 0.0, "rougeL": 1.0}


def _longest(a: str, b: str) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return _longest(a[:-1], b[:-1]) + 1
    return max(_longest(a[:-1], b), _longest(a, b[:-1]))


def test_common_subsequence_is_its_definition() -> None:
    words = ["".join(letters) for size in range(5) for letters in product("ab", repeat=size)]
    for a in words:
        for b in words:
            assert rouge.common_subsequence(a, b) == _longest(a, b)
    assert rouge.common_subsequence("xmjyauz" * 20, "mzjawxu" * 20) == _table("xmjyauz" * 20, "mzjawxu" * 20)


def _table(a: str, b: str) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        above = row
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    return row[-1]
