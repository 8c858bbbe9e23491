"""Label Studio (JSON and JSON_MIN) and Argilla: people's answers to questions about one, two or more answers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from preferent.data.formats.answer_names import Columns, choice_of, columns_of, readable_votes
from preferent.data.formats.feedback.answer_texts import answer_of, object_of, objects_of, prompt_of
from preferent.data.formats.feedback.converted_records import FeedbackOptions, NoFeedback, Row
from preferent.data.formats.feedback.ranked_pairs import RankedAnswer, pairs_of_ranking
from preferent.data.formats.feedback.single_answers import ANSWERS, PROMPTS, only_key, thumb_in
from preferent.data.formats.layouts import excerpt
from preferent.data.types import Choice, Preference, Thumb
from preferent.errors import DataError

Answered = tuple[str, object, str]
"""The name of a question, what one person answered, and who it was."""
CHOICES: dict[str, Choice] = {"left": 0, "right": 1, "tie": "tie", "both_bad": "tie"}


def is_label_studio(row: Row) -> bool:
    return isinstance(row.get("data"), dict) and ("annotations" in row or "completions" in row)


def label_studio(row: Row, options: FeedbackOptions) -> Sequence[Preference | Thumb]:
    """Parse a task of Label Studio; a cancelled annotation is none."""
    answers = []
    for annotation in objects_of(row.get("annotations") or row.get("completions")):
        who = annotation.get("completed_by")
        name = str(who.get("email", who.get("id", ""))) if isinstance(who, dict) else str(who or "")
        if not annotation.get("was_cancelled"):
            answers += [(*_control(made), name) for made in objects_of(annotation.get("result"))]
    return _converted(object_of(row.get("data")), answers, options)


def is_label_studio_min(row: Row) -> bool:
    return "annotation_id" in row or ("annotator" in row and "lead_time" in row)


def label_studio_min(row: Row, options: FeedbackOptions) -> Sequence[Preference | Thumb]:
    """Parse a row of JSON_MIN, in which the answers of one person stand beside the fields of the task."""
    about = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")
    who, answers = str(row.get("annotator") or ""), []
    fields = {key: content for key, content in row.items() if key not in about}
    for key, content in row.items():
        given = objects_of(content)
        if key not in about and len(given) == 1 and given[0].keys() & {"selected", "choices", "rating", "ranker"}:
            answers.append((key, _of_control(given[0]), who))
            fields.pop(key)
    texts = {key: text for key, text in fields.items() if isinstance(text, str) and len(text) < 40}
    if not answers:
        answers = [(key, text, who) for key, text in texts.items() if key not in (*ANSWERS, *PROMPTS)]
    return _converted(fields, answers, options)


def _control(made: Mapping[str, Any]) -> tuple[str, object]:
    return str(made.get("from_name")), _of_control(object_of(made.get("value")))


def _of_control(answer: Mapping[str, Any]) -> object:
    """Return what was answered: the side, the choice, the number, or the names from best to worst."""
    if isinstance(answer.get("ranker"), dict):
        return next(iter(object_of(answer["ranker"]).values()), None)
    given = answer.get("selected", answer.get("choices", answer.get("rating")))
    return given[0] if isinstance(given, list) and len(given) == 1 else given


def is_argilla(row: Row) -> bool:
    return isinstance(row.get("fields"), dict) and "responses" in row


def argilla(row: Row, options: FeedbackOptions) -> Sequence[Preference | Thumb]:
    """Parse a record of Argilla: `responses` by question, each a list of `value` and `user_id`; or one per person."""
    return _converted(object_of(row.get("fields")), list(_responses(row.get("responses"))), options)


def _responses(responses: object) -> Iterator[Answered]:
    if isinstance(responses, dict):
        for question, given in responses.items():
            yield from ((question, each.get("value"), str(each.get("user_id") or "")) for each in objects_of(given))
        return
    for response in objects_of(responses):
        if response.get("status", "submitted") in ("submitted", None):
            for question, given in object_of(response.get("values")).items():
                yield question, object_of(given).get("value"), str(response.get("user_id") or "")


def _converted(
    fields: Mapping[str, Any], answered: Sequence[Answered], options: FeedbackOptions
) -> Sequence[Preference | Thumb]:
    """Return what people's answers to the questions about one task say."""
    if not answered:
        raise NoFeedback("no vote: nobody has answered the task")
    rankings = [each for each in answered if _names(each[1], fields)]
    if rankings:
        return [pair for each in rankings for pair in _ranked(fields, each, options)]
    try:
        columns = columns_of(fields, "the record")
    except DataError:
        return _thumbs(fields, answered, options)
    return _compared(fields, columns, answered, options)


def _names(answer: object, fields: Mapping[str, Any]) -> list[str]:
    """Return the names of answers in a ranking, the best first; none if it is no ranking."""
    if not isinstance(answer, list) or len(answer) < 2:
        return []
    ranked = objects_of(answer)
    if len(ranked) == len(answer) and all(isinstance(each.get("rank"), int) for each in ranked):
        return []
    names = [name for name in answer if isinstance(name, str) and isinstance(fields.get(name), str)]
    return names if len(names) == len(answer) == len(set(names)) else []


def _ranked(fields: Mapping[str, Any], ranking: Answered, options: FeedbackOptions) -> Sequence[Preference]:
    """Return the pairs of a ranking, which lists the names of answers from best to worst."""
    names = _names(ranking[1], fields)
    prompt = prompt_of(fields[only_key(fields, (*PROMPTS, "context", "input"), "prompt")], options)
    answers = [RankedAnswer(answer_of(fields[name], options), -place) for place, name in enumerate(names)]
    return pairs_of_ranking(prompt, answers, options, annotator=_who(ranking, options))


def _compared(
    fields: Mapping[str, Any], columns: Columns, answered: Sequence[Answered], options: FeedbackOptions
) -> Sequence[Preference]:
    """Return a pair for each person's vote on two answers."""
    questions = {question for question, _, _ in answered}
    votes = {name: [each[1] for each in answered if each[0] == name] for name in questions}
    readable = {name for name in questions if readable_votes(name, votes[name], columns)}
    if not readable:
        shown = excerpt(next(each[1] for each in answered))
        raise NoFeedback(f"no vote: {shown} says not which answer is better; a number on a scale is no vote")
    if len(readable) > 1:
        raise NoFeedback(f"several votes: {', '.join(sorted(readable))[:80]} each say which answer is better")
    prompt = prompt_of(fields.get(columns[0]), options)
    first, second = (answer_of(fields.get(name), options) for name in columns[1:])
    if first == second:
        raise NoFeedback("equal answers: both are the same")
    pairs = []
    for vote in answered:
        choice = CHOICES.get(choice_of(vote[1], columns) or "") if vote[0] in readable else None
        if choice is not None:
            pairs.append(Preference(prompt, first, second, choice, annotator=_who(vote, options)))
    if not pairs:
        raise NoFeedback("no vote: the question was skipped")
    return pairs


def _thumbs(fields: Mapping[str, Any], answered: Sequence[Answered], options: FeedbackOptions) -> Sequence[Thumb]:
    """Return a thumb for each person's yes or no to one answer."""
    thumbs = [(each, thumb_in(each[1])) for each in answered if not isinstance(each[1], int | float)]
    if all(thumb is None for _, thumb in thumbs):
        raise NoFeedback(f"no vote: {excerpt(answered[0][1])} is neither yes nor no; a number on a scale is no vote")
    prompt = prompt_of(fields[only_key(fields, PROMPTS, "prompt")], options)
    answer = answer_of(fields[only_key(fields, ANSWERS, "answer")], options)
    return [
        Thumb(prompt, answer, is_good, annotator=_who(each, options)) for each, is_good in thumbs if is_good is not None
    ]


def _who(answered: Answered, options: FeedbackOptions) -> str | None:
    return answered[2] if options.personal and answered[2] else None
