"""One answer and a yes or no in each record: KTO rows, spreadsheets, scored traces of LangSmith and Langfuse."""

from collections.abc import Mapping
from typing import Any

from preferent.data.formats.feedback.answer_texts import (
    answer_of,
    object_of,
    objects_of,
    prompt_of,
    split_last,
    turns_of,
)
from preferent.data.formats.feedback.converted_records import FeedbackOptions, NoFeedback, Row
from preferent.data.formats.layouts import Unusable, conversation_prompt, excerpt
from preferent.data.types import Prompt, Thumb

PROMPTS = ("prompt", "input_text", "messages", "question", "instruction", "query")
ANSWERS = ("completion", "output_text", "response", "answer", "reply", "output")
LABELS = ("label", "thumb", "thumbs", "vote", "feedback")
UP = {"true", "1", "up", "yes", "good", "like", "liked", "positive", "desirable", "thumbsup", "+1", "👍"}
DOWN = {"false", "0", "-1", "down", "no", "bad", "dislike", "disliked", "negative", "undesirable", "thumbsdown", "👎"}
PEOPLE = ("user", "human", "thumb", "feedback", "people")
"""Words in the names of scores that people give."""


def thumb_in(content: object) -> bool | None:
    """Return whether a value is a thumb up or down; None if it is neither."""
    if isinstance(content, float) and content in (0.0, 1.0, -1.0):
        content = int(content)
    if not isinstance(content, str | int):
        return None
    text = str(content).strip().lower().replace("_", "").replace(" ", "").replace("-up", "up").replace("-down", "down")
    return True if text in UP else False if text in DOWN else None


def only_key(row: Mapping[str, Any], keys: tuple[str, ...], what: str) -> str:
    """Return the only key of a record that may hold something; raise `Unusable` if there is none, or several."""
    there = [key for key in keys if row.get(key) not in (None, "")]
    if len(there) != 1:
        named = " and ".join(there) or f"none of {', '.join(keys)}"
        raise Unusable(f"unclear {what}: the row has {named}; name the key with --columns")
    return there[0]


def is_labelled(row: Row) -> bool:
    """Return whether a row is an answer with a label that says yes or no."""
    labels = [row[key] for key in LABELS if key in row]
    has_answer = bool(row.keys() & {*ANSWERS}) and bool(row.keys() & {*PROMPTS})
    messages = objects_of(row.get("messages"))
    has_answer = has_answer or bool(messages and messages[-1].get("role") == "assistant")
    return len(labels) == 1 and has_answer and thumb_in(labels[0]) is not None


def labelled(row: Row, options: FeedbackOptions) -> list[Thumb]:
    """Parse an answer with a label: `prompt`, `completion`, `label`; or `messages` that end with the answer."""
    key = next((key for key in LABELS if key in row), "label")
    if row.get(key) in (None, ""):
        raise NoFeedback(f"no rating: {key} is empty")
    is_good = thumb_in(row[key])
    if is_good is None:
        raise Unusable(f"unclear label: {key} is {excerpt(row[key])}, which is neither yes nor no")
    context = row.get("context") if isinstance(row.get("context"), str) else None
    if not any(row.get(name) for name in ANSWERS):
        turns, answer = split_last(turns_of(row.get("messages"), options))
        return [_thumb(row, conversation_prompt(turns, context), answer, is_good, options)]
    asked, answer = row[only_key(row, PROMPTS, "prompt")], row[only_key(row, ANSWERS, "answer")]
    if isinstance(answer, list):
        _, answer = split_last(turns_of(answer, options))
    return [_thumb(row, prompt_of(asked, options, context), answer, is_good, options)]


def _thumb(row: Row, prompt: Prompt, answer: object, is_good: bool, options: FeedbackOptions) -> Thumb:
    group = row.get("group")
    prompt = Prompt(prompt.input_text, prompt.messages, prompt.context, group=group if isinstance(group, str) else "")
    who = row.get("annotator", row.get("user_id")) if options.personal else None
    return Thumb(prompt, answer_of(answer, options), is_good, annotator=None if who is None else str(who))


def is_trace(row: Row) -> bool:
    """Return whether a row is a trace with scores."""
    has_texts = bool(row.keys() & {"input", "inputs"}) and bool(row.keys() & {"output", "outputs"})
    return has_texts and bool(row.keys() & {"score", "scores", "feedback", "feedback_stats"})


def trace(row: Row, options: FeedbackOptions) -> list[Thumb]:
    """Parse a trace: `input`, `output`, and `score` or `scores`, of which 0 and 1 are thumbs and others a scale."""
    people = [score for score in _scores(row) if str(score.get("source", "")).upper() not in ("EVAL", "MODEL")]
    if not people:
        raise NoFeedback("no rating: the trace has no score that a person gave")
    names = {str(score.get("name", score.get("key", ""))) for score in people}
    named = {name for name in names if any(word in name.lower() for word in PEOPLE)}
    if len(names) > 1 and len(named) != 1:
        raise NoFeedback(f"several scores: {', '.join(sorted(names))[:80]}; which one is people's is not said")
    name = next(iter(named if len(names) > 1 else names))
    values = [_value(score) for score in people if str(score.get("name", score.get("key", ""))) == name]
    thumbs = [thumb_in(each) for each in values]
    if None in thumbs:
        raise NoFeedback(f"a scale: a score is {excerpt(values[thumbs.index(None)])}, and a thumb is 0 or 1")
    prompt = _asked(row.get("inputs", row.get("input")), options)
    answer = _answered(row.get("outputs", row.get("output")))
    return [_thumb(row, prompt, answer, thumb is True, options) for thumb in thumbs]


def _scores(row: Row) -> list[dict[str, Any]]:
    """Return the scores of a trace: one beside its texts, a list, or means by name."""
    if row.get("score") is not None:
        return [{"name": row.get("name", ""), "value": row["score"], "source": row.get("source", "")}]
    listed = objects_of(row.get("scores")) or objects_of(row.get("feedback"))
    means = [{"name": name, "value": object_of(each).get("avg")} for name, each in _items(row.get("feedback_stats"))]
    return listed or means


def _items(content: object) -> list[tuple[str, Any]]:
    return list(object_of(content).items())


def _value(score: Mapping[str, Any]) -> object:
    return score.get("score") if score.get("value") is None else score["value"]


def _asked(content: object, options: FeedbackOptions) -> Prompt:
    """Return the prompt of a trace: a text, messages, or an object that holds one of them."""
    if isinstance(content, dict):
        if isinstance(content.get("messages"), list):
            return prompt_of(content["messages"], options)
        content = content[only_key(content, (*PROMPTS, "input", "text"), "prompt")]
    return prompt_of(content, options)


def _answered(content: object) -> object:
    """Return the answer of a trace: a text, a message, or an object that holds one of them."""
    for _ in range(4):
        if isinstance(content, list) and content:
            content = content[-1]
        elif isinstance(content, dict):
            keys = (*ANSWERS, "content", "text", "choices", "message", "generations", "messages")
            content = content[only_key(content, keys, "answer")]
    return content
