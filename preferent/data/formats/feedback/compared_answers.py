"""Two answers and a verdict in each record: arenas, PKU, HelpSteer3, SHP, ShareGPT pairs and Gemini preferences."""

from typing import Any

from preferent.data.formats.feedback.answer_texts import (
    answer_of,
    object_of,
    objects_of,
    prompt_of,
    split_last,
    turns_of,
    whole_number,
)
from preferent.data.formats.feedback.converted_records import FeedbackOptions, NoFeedback, Row
from preferent.data.formats.layouts import Unusable, conversation_prompt, excerpt
from preferent.data.types import Choice, Preference, Prompt

WINNERS: dict[str, Choice] = {"model_a": 0, "model_b": 1, "tie": "tie", "tie (bothbad)": "tie"}


def is_arena(row: Row) -> bool:
    return row.keys() >= {"conversation_a", "conversation_b", "winner"}


def arena(row: Row, options: FeedbackOptions) -> list[Preference]:
    """Parse a battle of LMArena: `conversation_a`, `conversation_b`, and `winner`, which may be a tie."""
    winner = row.get("winner")
    if winner is None or winner == "":
        raise NoFeedback("no vote: winner is empty")
    if not isinstance(winner, str) or winner not in WINNERS:
        raise Unusable(f"unclear label: winner is {excerpt(winner)}, not {', '.join(WINNERS)}")
    (asked, a), (asked_too, b) = (split_last(turns_of(row.get(f"conversation_{side}"), options)) for side in "ab")
    if asked != asked_too:
        raise NoFeedback("two conversations: the vote is on whole conversations, which differ before the last answer")
    models = {f"model_{place}": row.get(f"model_{side}") for place, side in enumerate("ab")}
    about = models | {"both_bad": True if winner == "tie (bothbad)" else None}
    return [
        _pair(conversation_prompt(asked, None), (a, b), WINNERS[winner], options, extra=about, who=row.get("judge"))
    ]


def is_pku(row: Row) -> bool:
    return row.keys() >= {"response_0", "response_1", "better_response_id"}


def pku(row: Row, options: FeedbackOptions) -> list[Preference]:
    """Parse PKU-SafeRLHF: `better_response_id` says which answer helps more; safety is kept as it is, it is no vote."""
    choice = _side(row.get("better_response_id"), "better_response_id", {0: 0, 1: 1})
    safe = {key: row.get(key) for key in ("is_response_0_safe", "is_response_1_safe", "safer_response_id")}
    return [
        _pair(
            prompt_of(row.get("prompt"), options), (row.get("response_0"), row.get("response_1")), choice, options, safe
        )
    ]


def is_helpsteer(row: Row) -> bool:
    return row.keys() >= {"context", "response1", "response2", "overall_preference"}


def helpsteer(row: Row, options: FeedbackOptions) -> list[Preference]:
    """Parse HelpSteer3: `overall_preference` from -3, the first answer is much better, to 3; 0 is a tie."""
    sign = whole_number(row.get("overall_preference"))
    if row.get("overall_preference") is None:
        raise NoFeedback("no vote: overall_preference is empty")
    if sign is None or abs(sign) > 3:
        raise Unusable(f"unclear label: overall_preference is {excerpt(row['overall_preference'])}, not from -3 to 3")
    choice: Choice = "tie" if sign == 0 else 0 if sign < 0 else 1
    prompt, answers = prompt_of(row.get("context"), options), (row.get("response1"), row.get("response2"))
    return [_pair(prompt, answers, choice, options, strength=float(abs(sign)) or None)]


def is_shp(row: Row) -> bool:
    return row.keys() >= {"history", "human_ref_A", "human_ref_B", "labels"}


def shp(row: Row, options: FeedbackOptions) -> list[Preference]:
    """Parse SHP: `labels` is 1 where the first answer had more votes."""
    choice = _side(row.get("labels"), "labels", {1: 0, 0: 1})
    return [
        _pair(prompt_of(row.get("history"), options), (row.get("human_ref_A"), row.get("human_ref_B")), choice, options)
    ]


def is_sharegpt(row: Row) -> bool:
    return row.keys() >= {"conversations", "chosen", "rejected"}


def sharegpt(row: Row, options: FeedbackOptions) -> list[Preference]:
    """Parse ShareGPT pairs: `conversations`, `chosen` and `rejected` with `from` and `value`."""
    turns = turns_of(row.get("conversations"), options, "from", "value")
    sides = [row.get(key) for key in ("chosen", "rejected")]
    answers = [turns_of(side if isinstance(side, list) else [side], options, "from", "value") for side in sides]
    if any(len(side) != 1 or side[0].role != "assistant" for side in answers):
        raise Unusable("bad answer: chosen and rejected are one answer each")
    system = row["system"] if isinstance(row.get("system"), str) else ""
    first, second = (side[0].content for side in answers)
    return [_pair(conversation_prompt(turns, system or None), (first, second), 0, options)]


def is_gemini(row: Row) -> bool:
    return "contents" in row and any("score" in each for each in objects_of(row.get("completions")))


def gemini(row: Row, options: FeedbackOptions) -> list[Preference]:
    """Parse preferences of Gemini: `contents`, and two `completions` of which one has the score 1 and the other 0."""
    completions = objects_of(row.get("completions"))
    if len(completions) != 2:
        raise Unusable(f"bad answer: completions has {len(completions)} answers, not two")
    scores = [whole_number(each.get("score")) for each in completions]
    if not set(scores) <= {0, 1}:
        raise Unusable("unclear label: the score of a completion is 0 or 1")
    turns = turns_of([_parted(each) for each in objects_of(row.get("contents"))], options)
    system = _parted(object_of(row.get("system_instruction") or row.get("systemInstruction")))["content"]
    answers = [_parted(object_of(each.get("completion")))["content"] for each in completions]
    choice: Choice = "tie" if scores[0] == scores[1] else 0 if scores[0] == 1 else 1
    return [_pair(conversation_prompt(turns, system or None), (answers[0], answers[1]), choice, options)]


def _parted(message: Row) -> dict[str, Any]:
    """Return a message of Gemini with the text of its parts as `content`."""
    texts = [part.get("text") for part in objects_of(message.get("parts"))]
    if not all(isinstance(text, str) for text in texts):
        raise NoFeedback("picture: a message holds a part that is no text")
    return {"role": message.get("role"), "content": "".join(text for text in texts if isinstance(text, str))}


def _side(verdict: object, key: str, sides: dict[int, Choice]) -> Choice:
    """Return the choice that a number expresses."""
    number = whole_number(verdict)
    if verdict is None or verdict == "":
        raise NoFeedback(f"no vote: {key} is empty")
    if number not in sides:
        raise Unusable(f"unclear label: {key} is {excerpt(verdict)}, not 0 or 1")
    return sides[number]


def _pair(
    prompt: Prompt,
    answers: tuple[object, object],
    choice: Choice,
    options: FeedbackOptions,
    extra: dict[str, Any] | None = None,
    strength: float | None = None,
    who: object = None,
) -> Preference:
    first, second = (answer_of(answer, options) for answer in answers)
    if first == second:
        raise NoFeedback("equal answers: both are the same")
    about = {key: content for key, content in (extra or {}).items() if content is not None}
    annotator = str(who) if options.personal and isinstance(who, str | int) else None
    return Preference(prompt, first, second, choice, strength=strength, annotator=annotator, extra=about)
