"""The layouts of rows: one function per format, from a JSON object to a record, or `Unusable` with the reason."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from preferent.data.types import Choice, Demonstration, Message, Preference, Prompt, Thumb

Row = dict[str, Any]
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
PARTS = frozenset({"input_text", "messages", "context", "candidate_0", "candidate_1", "choice", "output_text", "text"})
CANONICAL = PARTS | {"id", "group", "strength", "annotator", "reference", "weight"}


class Unusable(Exception):
    """A row that is not a record of the wanted kind; the text is `category: detail`."""


def excerpt(value: object) -> str:
    """Return a value as text of at most 40 characters, for a message."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def keys_of(row: Row) -> str:
    """Return the keys of a row, for a message."""
    return ", ".join(key[:40] for key in sorted(row)[:8]) or "nothing"


def _require(row: Row, *keys: str) -> None:
    """Refuse a row in which a key is missing. Called before any key is taken, so that the message lists all keys."""
    for key in keys:
        if key not in row:
            raise Unusable(f"missing key: {key} (the row has: {keys_of(row)})")


def _text(row: Row, key: str) -> str:
    """Take a text that is required."""
    _require(row, key)
    value = row.pop(key)
    if not isinstance(value, str):
        raise Unusable(f"wrong type: {key} is {excerpt(value)}, not a text")
    return value


def _optional(row: Row, key: str) -> str | None:
    """Take a text that may be absent or null."""
    value = row.pop(key, None)
    if value is not None and not isinstance(value, str):
        raise Unusable(f"wrong type: {key} is {excerpt(value)}, not a text; rename the key if it means something else")
    return value


def _name(row: Row, key: str) -> str:
    """Take a name: a text or a whole number; empty if absent."""
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        row[key] = str(value)
    return _optional(row, key) or ""


def _number(row: Row, key: str) -> float | None:
    """Take a number that may be absent or null."""
    value = row.pop(key, None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        raise Unusable(
            f"wrong type: {key} is {excerpt(value)}, not a number; rename the key if it means something else"
        )
    return float(value)


def content_of(value: object) -> str:
    """Return the text of a message, which is a text or a list of text parts."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        parts = [part.get("text") if part.get("type") == "text" else None for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        value = "".join(texts) if len(texts) == len(parts) else value
    if not isinstance(value, str):
        raise Unusable(f"wrong type: the content of a message is {excerpt(value)}, not a text")
    return value


def messages_of(value: object) -> tuple[Message, ...]:
    """Return the turns of a conversation, each an object with `role` (GCPC: `author`) and `content`."""
    if not isinstance(value, list) or not value:
        raise Unusable(f"bad messages: {excerpt(value)} is not a list of messages")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or "content" not in turn:
            raise Unusable(f"bad messages: {excerpt(turn)} is not an object with role and content")
        role = turn.get("role", turn.get("author"))
        if not isinstance(role, str) or role not in ROLES:
            raise Unusable(f"bad messages: the role of a message is {excerpt(role)}, not system, user or assistant")
        turns.append(Message(ROLES[role], content_of(turn["content"])))
    return tuple(turns)


def conversation_prompt(turns: Sequence[Message], context: str | None) -> Prompt:
    """Return a prompt from turns that begin with an optional system text and end with the user."""
    if turns and turns[0].role == "system":
        if context is not None:
            raise Unusable("bad messages: a context and a system message; give one of them")
        context, turns = turns[0].content, turns[1:]
    roles = [turn.role for turn in turns]
    if "system" in roles:
        raise Unusable("bad messages: a system message after the first")
    if not roles or roles[0] != "user" or roles[-1] != "user":
        raise Unusable(f"bad messages: a prompt begins and ends with the user, not {' '.join(roles[-3:]) or 'nothing'}")
    if not all(turn.content for turn in turns):
        raise Unusable("bad messages: a message is empty")
    return Prompt(messages=tuple(turns), context=context)


def _text_or_turns(prompt: object) -> Prompt:
    """Return a prompt that is given as a text or as messages."""
    return Prompt(input_text=prompt) if isinstance(prompt, str) else conversation_prompt(messages_of(prompt), None)


def _gcpc_prompt(row: Row) -> Prompt:
    """Take the prompt of a GCPC row: `input_text`, or `messages` with an optional `context`."""
    if "messages" not in row:
        return Prompt(input_text=_text(row, "input_text"))
    if _optional(row, "input_text"):
        raise Unusable("two prompts: both input_text and messages; give one of them")
    return conversation_prompt(messages_of(row.pop("messages")), _optional(row, "context"))


def _extra(row: Row, format: str) -> Mapping[str, Any]:
    """Return what is left of a row; a key that has a meaning in the canonical row gets the format's name as prefix."""
    return {f"{format}.{key}" if key in CANONICAL else key: value for key, value in row.items()}


def _finish(row: Row, format: str, prompt: Prompt, candidates: tuple[str, str], choice: Choice) -> Preference:
    """Return a preference from its parts and the rest of its row."""
    if candidates[0] == candidates[1]:
        raise Unusable(f"equal candidates: both are {excerpt(candidates[0])}")
    group, reference, id = _name(row, "group"), _optional(row, "reference"), _name(row, "id")
    prompt = Prompt(prompt.input_text, prompt.messages, prompt.context, reference, group=group)
    strength, annotator = _number(row, "strength"), _name(row, "annotator") or None
    weight = _weight(row) if format == "gcpc" else None
    extra = _extra(row, format)
    return Preference(prompt, *candidates, choice, id, strength, annotator, extra, weight=weight)


def _weight(row: Row) -> float | None:
    """Take the weight of a pair, a number above 0 that may be absent or null."""
    weight = _number(row, "weight")
    if weight is not None and weight <= 0:
        raise Unusable(f"bad weight: {weight:g}; it is above 0, and 1 where it is absent")
    return weight


def gcpc_preference(row: Row) -> Preference:
    """Parse GCPC: `input_text` or `messages` (+ `context`), `candidate_0`, `candidate_1`, `choice`."""
    _require(row, "candidate_0", "candidate_1", "choice")
    prompt = _gcpc_prompt(row)
    candidates = _text(row, "candidate_0"), _text(row, "candidate_1")
    choice = row.pop("choice")
    if isinstance(choice, bool | float) or choice not in (0, 1, "tie"):
        raise Unusable(f'bad choice: {excerpt(choice)}; it is 0, 1 or "tie"')
    return _finish(row, "gcpc", prompt, candidates, cast(Choice, choice))


def _answer(turns: Sequence[Message], key: str) -> str:
    """Return the text of an answer, which is one assistant message."""
    if len(turns) != 1 or turns[0].role != "assistant":
        raise Unusable(f"bad answer: {key} is not one assistant message after the shared prompt")
    return turns[0].content


def _common_length(first: str, second: str) -> int:
    """Return the length of the longest common prefix of two texts."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def _common_words(first: str, second: str) -> int:
    """Return the length of the longest common prefix of two texts that ends before white space."""
    length = _common_length(first, second)
    while length and not (first[length : length + 1] or second[length : length + 1]).isspace():
        length -= 1
    return length


def trl_preference(row: Row) -> Preference:
    """Parse TRL: `prompt`, `chosen`, `rejected` as texts or conversations; `prompt` may be the answers' common part."""
    prompt, chosen, rejected = row.pop("prompt", None), row.pop("chosen", None), row.pop("rejected", None)
    if chosen is None or rejected is None:
        raise Unusable(f"missing key: {'chosen' if chosen is None else 'rejected'}")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            cut = _common_words(chosen, rejected)
            prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
        return _finish(row, "trl", _text_or_turns(prompt), (chosen, rejected), 0)
    first, second = messages_of(chosen), messages_of(rejected)
    if len(first) == 1 and prompt is not None:
        turns = (Message("user", prompt),) if isinstance(prompt, str) else messages_of(prompt)
    else:
        turns, first, second = _split_turns(first, second, prompt)
    return _finish(
        row, "trl", conversation_prompt(turns, None), (_answer(first, "chosen"), _answer(second, "rejected")), 0
    )


def _split_turns(
    first: tuple[Message, ...], second: tuple[Message, ...], prompt: object
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Split two conversations into the turns they share and their last turns; `prompt` may repeat shared turns."""
    shared = first[:-1]
    if len(second) != len(first) or second[:-1] != shared:
        raise Unusable("bad answer: chosen and rejected differ before their last message")
    repeated = [turn.content for turn in shared if turn.role == "user"]
    if isinstance(prompt, str) and prompt.strip() not in (turn.strip() for turn in repeated):
        raise Unusable("two prompts: prompt is not among the messages that chosen and rejected share")
    if isinstance(prompt, list) and messages_of(prompt) != shared:
        raise Unusable("two prompts: prompt is not what chosen and rejected share")
    return shared, first[-1:], second[-1:]


def hh_preference(row: Row) -> Preference:
    """Parse Anthropic HH: `chosen` and `rejected` are dialogues that differ after the last common Assistant mark."""
    _require(row, "chosen", "rejected")
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    shared = chosen.rfind(ASSISTANT, 0, _common_length(chosen, rejected))
    if shared < 0 or HUMAN not in chosen[:shared]:
        raise Unusable("bad dialogue: chosen and rejected do not begin with the same Human and Assistant turns")
    cut = shared + len(ASSISTANT)
    if any(mark in answer for mark in (HUMAN, ASSISTANT) for answer in (chosen[cut:], rejected[cut:])):
        raise Unusable("bad dialogue: chosen and rejected differ before their last turn")
    return _finish(row, "hh", Prompt(input_text=chosen[:cut]), (chosen[cut:], rejected[cut:]), 0)


def openai_preference(row: Row) -> Preference:
    """Parse OpenAI: `input` with `messages`; `preferred_output`, `non_preferred_output`: one assistant message each."""
    _require(row, "input", "preferred_output", "non_preferred_output")
    conversation = row.pop("input")
    if not isinstance(conversation, dict) or "messages" not in conversation:
        raise Unusable("missing key: input.messages")
    prompt = conversation_prompt(messages_of(conversation["messages"]), None)
    rest = {key: value for key, value in conversation.items() if key != "messages" and value not in ([], None, True)}
    if rest:
        row["input"] = rest
    chosen = _answer(messages_of(row.pop("preferred_output")), "preferred_output")
    rejected = _answer(messages_of(row.pop("non_preferred_output")), "non_preferred_output")
    return _finish(row, "openai", prompt, (chosen, rejected), 0)


def prompt(row: Row) -> Prompt:
    """Parse a prompt: `input_text`, `messages` (+ `context`), or `prompt` as text or messages; never empty."""
    if "prompt" in row and "input_text" not in row and "messages" not in row:
        question = _text_or_turns(row.pop("prompt"))
    else:
        question = _gcpc_prompt(row)
    if question.is_empty:
        raise Unusable("empty prompt: there is nothing to answer")
    group, reference, id = _name(row, "group"), _optional(row, "reference"), _name(row, "id")
    extra = _extra(row, "prompt")
    return Prompt(question.input_text, question.messages, question.context, reference, id, group, extra)


def demonstration(row: Row) -> Demonstration:
    """Parse a prompt and an answer: `input_text`, `output_text`; `prompt`, `completion`; or `messages` with both."""
    question, output = _prompt_and_answer(row)
    if question.is_empty:
        raise Unusable("empty prompt: write plain text as rows with the key text")
    if not output:
        raise Unusable("empty answer: there is nothing to learn")
    id, group = _name(row, "id"), _name(row, "group")
    question = Prompt(question.input_text, question.messages, question.context, group=group)
    return Demonstration(question, output, id, _extra(row, "demonstration"))


def _prompt_and_answer(row: Row) -> tuple[Prompt, str]:
    """Take the prompt and the answer of a demonstration."""
    if "completion" in row:
        if "prompt" not in row:
            raise Unusable("missing key: prompt")
        question, answer = _text_or_turns(row.pop("prompt")), row.pop("completion")
        return question, answer if isinstance(answer, str) else _answer(messages_of(answer), "completion")
    if "output_text" in row:
        return _gcpc_prompt(row), _text(row, "output_text")
    if "messages" in row:
        turns = messages_of(row.pop("messages"))
        return conversation_prompt(turns[:-1], _optional(row, "context")), _answer(turns[-1:], "the last of messages")
    raise Unusable(f"missing key: output_text (the row has: {keys_of(row)})")


def pair_or_thumb(row: Row) -> Preference | Thumb:
    """Parse a row of the files that the data stage writes: a GCPC preference, or a thumb, which has a `label`."""
    if "label" not in row or "output_text" not in row or "choice" in row:
        return gcpc_preference(row)
    question, output, is_good = _gcpc_prompt(row), _text(row, "output_text"), row.pop("label")
    if not isinstance(is_good, bool):
        raise Unusable(f"wrong type: label is {excerpt(is_good)}, not true or false")
    question = Prompt(question.input_text, question.messages, question.context, group=_name(row, "group"))
    id, annotator = _name(row, "id"), _name(row, "annotator") or None
    return Thumb(question, output, is_good, id, annotator, _extra(row, "thumb"))


def text(row: Row) -> Demonstration:
    """Parse plain text (`text`) as a demonstration without a prompt."""
    output = _text(row, "text")
    if not output.strip():
        raise Unusable("empty text: there is nothing to learn")
    return Demonstration(Prompt(), output, _name(row, "id"), _extra(row, "text"))


PREFERENCE: dict[str, Callable[[Row], Preference]] = {
    "gcpc": gcpc_preference,
    "trl": trl_preference,
    "hh": hh_preference,
    "openai": openai_preference,
}
"""Preference formats by name."""


def preference_format(row: Row) -> str:
    """Return the preference format that a row looks like, even with an answer missing, or an empty text."""
    if row.keys() & {"candidate_0", "candidate_1"}:
        return "gcpc"
    if row.keys() & {"preferred_output", "non_preferred_output"}:
        return "openai"
    if not row.keys() & {"chosen", "rejected"}:
        return ""
    answer = row.get("chosen", row.get("rejected"))
    dialogue = isinstance(answer, str) and HUMAN in answer and ASSISTANT in answer
    return "hh" if dialogue and "prompt" not in row else "trl"


def kind(row: Row) -> str:
    """Return the kind that a row looks like: preference, demonstration, prompt or text, or an empty text."""
    if preference_format(row):
        return "preference"
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    ends = last.get("role", last.get("author")) if isinstance(last, dict) else None
    if "output_text" in row or "completion" in row or ends == "assistant":
        return "demonstration"
    if row.keys() & {"input_text", "messages", "prompt"}:
        return "prompt"
    return "text" if "text" in row else ""
