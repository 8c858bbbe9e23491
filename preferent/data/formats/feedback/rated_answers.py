"""Ratings and rankings: UltraFeedback and Nectar, with all answers in a record; HelpSteer2 and spreadsheets, with one.

A rating is a place on a scale, never a vote: only two answers of one person to the same prompt make a pair.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from preferent.data.formats.feedback.answer_texts import answer_of, object_of, objects_of, prompt_of
from preferent.data.formats.feedback.converted_records import (
    RATED_AGAIN,
    ConvertedRecord,
    FeedbackOptions,
    NoFeedback,
    PlacedRows,
    Row,
    left_out,
)
from preferent.data.formats.feedback.ranked_pairs import RankedAnswer, pairs_of_ranking
from preferent.data.formats.feedback.single_answers import ANSWERS, PROMPTS, only_key
from preferent.data.formats.layouts import Unusable, excerpt
from preferent.data.types import Preference, Prompt

RATINGS = ("rating", "score", "overall_score", "overall", "stars", "grade")
"""Keys of a rating as a whole, which goes before others."""
ASPECTS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity", "quality")
PEOPLE = ("annotator", "rater", "user_id", "user", "worker")


def is_ultrafeedback(row: Row) -> bool:
    return bool(row.keys() & {"instruction", "prompt"}) and any(
        "response" in each for each in objects_of(row.get("completions"))
    )


def ultrafeedback(row: Row, options: FeedbackOptions) -> tuple[Preference, ...]:
    """Parse UltraFeedback: `instruction`, and `completions` of `response` with ratings."""
    prompt = prompt_of(row.get("instruction", row.get("prompt")), options)
    answers = []
    for each in objects_of(row.get("completions")):
        ratings = {name: object_of(rated).get("Rating") for name, rated in object_of(each.get("annotations")).items()}
        height = rating_of(ratings | each, options)
        if height is None:
            raise NoFeedback("no rating: an answer has none")
        answers.append(RankedAnswer(answer_of(each.get("response"), options), height, str(each.get("model") or "")))
    return pairs_of_ranking(prompt, answers, options, is_scale=True)


def is_nectar(row: Row) -> bool:
    return "prompt" in row and any("rank" in each for each in objects_of(row.get("answers")))


def nectar(row: Row, options: FeedbackOptions) -> tuple[Preference, ...]:
    """Parse Nectar: `answers` with `rank`, 1 is the best."""
    answers = []
    for each in objects_of(row.get("answers")):
        rank = number_of(each.get("rank"))
        if rank is None:
            raise Unusable(f"unclear label: the rank of an answer is {excerpt(each.get('rank'))}")
        answers.append(RankedAnswer(answer_of(each.get("answer"), options), -rank, str(each.get("model") or "")))
    return pairs_of_ranking(prompt_of(row.get("prompt"), options), answers, options)


def number_of(content: object) -> float | None:
    """Return a finite number that is given as a number or as a text; None if it is neither."""
    if isinstance(content, str) and re.fullmatch(r"\s*[-+]?\d{1,9}([.,]\d{1,9})?\s*", content):
        return float(content.replace(",", "."))
    if isinstance(content, bool) or not isinstance(content, int | float) or abs(content) > 1e9:
        return None
    return float(content) if math.isfinite(content) else None


def rating_of(row: Mapping[str, Any], options: FeedbackOptions) -> float | None:
    """Return the rating in a record, None if it is empty; raise `Unusable` if several keys may be it."""
    if options.rating is not None:
        return number_of(row.get(options.rating))
    there = [key for key in RATINGS if row.get(key) is not None] or [
        key for key, content in row.items() if key in ASPECTS and content is not None
    ]
    there = there or [key for key in row if key[:1].isalpha() and "_" in key and number_of(row[key]) is not None]
    if len(there) > 1 and there[0] != "helpfulness":
        raise Unusable(f"several ratings: {', '.join(there[:6])}; say which one decides with --rating KEY")
    if not there or row[there[0]] == "":
        return None
    height = number_of(row[there[0]])
    if height is None:
        raise Unusable(f"unclear label: {there[0]} is {excerpt(row[there[0]])}, not a number")
    return height


def is_rated(row: Row) -> bool:
    """Return whether a row is one answer with a rating."""
    has_texts = bool(row.keys() & {*PROMPTS}) and bool(row.keys() & {*ANSWERS})
    return has_texts and bool(row.keys() & {*RATINGS, *ASPECTS})


@dataclass(frozen=True, slots=True)
class PlacedRating:
    """A rated answer, the number of its record, its prompt, and who rated it."""

    number: int
    place: str
    prompt: Prompt
    answer: RankedAnswer
    who: str


def rated(rows: PlacedRows, options: FeedbackOptions) -> list[ConvertedRecord]:
    """Convert rows of one answer with a rating: the answers that one person rated to the same prompt are paired."""
    converted: dict[int, ConvertedRecord] = {}
    groups: dict[tuple[str, str], dict[str, PlacedRating]] = {}
    for number, (place, row) in enumerate(rows):
        try:
            if isinstance(row, str):
                raise Unusable(row)
            made = _rating(row, options, place, number)
        except Unusable as reason:
            converted[number] = left_out(place, reason)
            continue
        group = groups.setdefault((made.prompt.key, made.who), {})
        if made.answer.text in group:
            earlier = group[made.answer.text]
            converted[earlier.number] = ConvertedRecord(earlier.place, reason=RATED_AGAIN)
        group[made.answer.text] = made
    for group in groups.values():
        converted |= _paired(list(group.values()), options)
    return [converted[number] for number in sorted(converted)]


def _rating(row: Row, options: FeedbackOptions, place: str, number: int) -> PlacedRating:
    height = rating_of(row, options)
    if height is None:
        raise NoFeedback("no rating: the answer has none")
    prompt = prompt_of(row[only_key(row, PROMPTS, "prompt")], options)
    answer = answer_of(row[only_key(row, ANSWERS, "answer")], options)
    model = row.get("model")
    who = next((str(row[key]) for key in PEOPLE if row.get(key) not in (None, "")), "")
    return PlacedRating(
        number, place, prompt, RankedAnswer(answer, height, model if isinstance(model, str) else ""), who
    )


def _paired(group: list[PlacedRating], options: FeedbackOptions) -> dict[int, ConvertedRecord]:
    """Return what the ratings of one person of answers to one prompt became."""
    first = group[0]
    who = first.who if options.personal and first.who else None
    try:
        pairs = pairs_of_ranking(first.prompt, [each.answer for each in group], options, is_scale=True, annotator=who)
    except NoFeedback as reason:
        return {each.number: left_out(each.place, reason) for each in group}
    joined = {each.number: ConvertedRecord(each.place, joined=True) for each in group[1:]}
    rows = tuple(replace(pair, source=first.place) for pair in pairs)
    return {first.number: ConvertedRecord(first.place, rows)} | joined
