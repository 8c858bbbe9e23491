"""The texts of an export: what was asked, what was answered, and what is taken out of both."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from preferent.data.formats.feedback.converted_records import FeedbackOptions
from preferent.data.formats.layouts import Unusable, content_of, conversation_prompt, excerpt
from preferent.data.types import Message, Prompt

BLOCKS = (
    (re.compile(r'<details\b[^>]{0,200}\btype="reasoning"[^>]{0,400}>'), "</details>"),
    *((re.compile(f"<{name}>"), f"</{name}>") for name in ("think", "thinking", "reasoning")),
)
"""How blocks of reasoning begin and end."""
PICTURES = ("image", "image_url", "input_image")


def without_reasoning(text: str) -> str:
    """Return a text without its blocks of reasoning; raise `Unusable` for a block that does not end."""
    for beginning, end in BLOCKS:
        parts, at = [], 0
        while match := beginning.search(text, at):
            close = text.find(end, match.end())
            if close < 0:
                raise Unusable("unfinished reasoning: the answer breaks off inside a block of reasoning")
            parts.append(text[at : match.start()])
            at = close + len(end)
        text = "".join([*parts, text[at:].lstrip() if parts else text])
    return text


def text_of(content: object) -> str:
    """Return the text of a message; raise `Unusable` for pictures and for what is no text."""
    if isinstance(content, list) and any(isinstance(part, dict) and part.get("type") in PICTURES for part in content):
        raise Unusable("picture: a message holds a picture, which no text can stand for")
    return content_of(content)


def answer_of(content: object, options: FeedbackOptions) -> str:
    """Return an answer that can be learned from; raise `Unusable` for one that is empty or holds a picture."""
    text = text_of(content)
    if "](data:image/" in text:
        raise Unusable("picture: the answer holds a picture, which no text can stand for")
    text = text if options.reasoning else without_reasoning(text)
    if not text.strip():
        raise Unusable("empty answer: there is nothing to learn")
    return text


def turns_of(messages: object, options: FeedbackOptions, role: str = "role", content: str = "content") -> list[Message]:
    """Return the turns of a conversation, whose keys are `role` and `content`; earlier answers lose their reasoning if
    the options say so."""
    names = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant"}
    names |= {"system": "system", "developer": "system"}
    if not isinstance(messages, list) or not messages:
        raise Unusable(f"bad messages: {excerpt(messages)} is not a list of messages")
    turns = []
    for turn in messages:
        if not isinstance(turn, Mapping) or not isinstance(turn.get(role), str) or turn[role] not in names:
            raise Unusable(f"bad messages: {excerpt(turn)} is no message of system, user or assistant")
        said, text = names[turn[role]], text_of(turn.get(content))
        turns.append(Message(said, text if options.reasoning or said != "assistant" else without_reasoning(text)))
    return turns


def prompt_of(asked: object, options: FeedbackOptions, system: str | None = None) -> Prompt:
    """Return a prompt that is a text or a list of messages; raise `Unusable` for an empty one."""
    if isinstance(asked, str) and system is None:
        prompt = Prompt(input_text=asked)
    else:
        turns = [Message("user", asked)] if isinstance(asked, str) else turns_of(asked, options)
        prompt = conversation_prompt(turns, system)
    if prompt.is_empty:
        raise Unusable("empty prompt: there is nothing to answer")
    return prompt


def split_last(turns: Sequence[Message]) -> tuple[Sequence[Message], str]:
    """Return the turns before the last one, and that one's text, which must be an answer."""
    if not turns or turns[-1].role != "assistant":
        raise Unusable("bad messages: the conversation does not end with an answer")
    return turns[:-1], turns[-1].content


def whole_number(content: Any) -> int | None:
    """Return a whole number that is given as a number or as a text; None if it is neither."""
    if isinstance(content, str) and re.fullmatch(r"\s*[-+]?\d{1,9}\s*", content):
        return int(content)
    if isinstance(content, bool) or not isinstance(content, int | float) or abs(content) > 1e9:
        return None
    return int(content) if content == int(content) else None


def object_of(content: object) -> dict[str, Any]:
    """Return a JSON object; an empty one for anything else."""
    return content if isinstance(content, dict) else {}


def objects_of(content: object) -> list[dict[str, Any]]:
    """Return the JSON objects in a list; none for anything else."""
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
