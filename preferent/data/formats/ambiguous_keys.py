"""Rows whose other keys contradict or extend what a format reads: a second prompt, a verdict, several answers.

A key that the format does not read is ignored only if it cannot change the meaning of the row.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from preferent.data.types import Demonstration, Preference, Prompt, Record

Row = Mapping[str, Any]

PROMPT_WORDS = frozenset(
    {
        *("prompt", "question", "instruction", "instructions", "query", "input", "context", "system", "history"),
        *("dialogue", "dialog", "conversation", "messages", "turns", "chat", "problem", "post", "passage"),
        *("document", "article", "request", "user", "human", "title", "text"),
    }
)
"""Words in the names of keys that hold a prompt."""
OTHER_WORDS = frozenset(
    {
        *("id", "ids", "name", "source", "model", "url", "license", "split", "dataset", "subset", "date", "time"),
        *("timestamp", "hash", "index", "version", "author", "annotator", "file", "path", "language", "chosen"),
        *("rejected", "response", "completion", "output", "answer", "generation", "reference", "summary", "gold"),
        *("target", "explanation", "rationale", "reason", "reasoning", "comment", "note", "notes", "feedback"),
        *("critique", "justification", "review"),
    }
)
"""Words in the names of keys whose texts are not part of a prompt."""
BESIDE_A_PROMPT = frozenset(
    ("system", "system_prompt", "system_message", "context", "history", "input", "instruction", "question", "query")
)
"""Keys that are part of what is asked, also where the row has a prompt."""
BESIDE_A_TEXT = BESIDE_A_PROMPT | {"prompt", "input_text", "output", "output_text", "response", "completion", "answer"}
"""Keys that make a plain text part of something larger."""
SYSTEM = frozenset(("system", "system_prompt", "system_message"))

FOR = frozenset(
    {
        *("label", "labels", "accepted", "acceptable", "approved", "preferred", "desirable", "good", "correct"),
        *("liked", "positive", "safe", "thumbs", "thumb", "vote", "upvoted", "feedback"),
    }
)
"""Words in the names of keys that say whether an answer is a good one."""
AGAINST = frozenset(
    ["bad", "wrong", "undesirable", "flagged", "toxic", "harmful", "unsafe", "disliked", "incorrect", "unacceptable"]
)
"""Words in the names of keys that say whether an answer is a bad one."""
NO = frozenset(
    {
        *("false", "no", "0", "-1", "bad", "wrong", "rejected", "reject", "undesirable", "negative", "dislike"),
        *("disliked", "down", "unsafe", "harmful", "incorrect", "unacceptable", "worse", "poor"),
    }
)
YES = frozenset(
    {
        *("true", "yes", "1", "good", "right", "chosen", "accept", "accepted", "desirable", "positive", "like"),
        *("liked", "up", "safe", "correct"),
    }
)
SCALES = frozenset(
    {
        *("rating", "ratings", "score", "scores", "stars", "grade", "quality", "reward", "rank", "ranks"),
        *("ranking", "rankings"),
    }
)
"""Words in the names of keys that hold a number on a scale, or a place in a ranking."""
VERDICTS = SCALES | frozenset(
    ["winner", "preference", "preferred", "choice", "label", "labels", "best", "better", "worse", "vote", "votes"]
)
"""Words in the names of keys that say which of several answers is better."""
CHOICES = frozenset(("choice", "winner", "better", "best", "preferred", "preference", "swapped", "flipped", "reversed"))
"""Keys that say which answer is better a second time, where the names of the answers already do."""
LISTS = frozenset(
    ["responses", "answers", "completions", "candidates", "outputs", "generations", "replies", "summaries"]
)
NUMBERED = re.compile(r"(response|answer|completion|candidate|output|generation|reply|summary)[-_ ]?([a-h0-9])", re.I)


def ambiguity(row: Row, record: Record, kind: str, format: str) -> str:
    """Return why a row that was read as `record` may mean something else, or an empty text.

    `row` is the whole row, with its keys renamed as the user said.
    """
    unread = {key.removeprefix(f"{format}."): content for key, content in record.extra.items() if key[:6] != "extra."}
    return (
        _several_answers(row, unread, kind)
        or _verdict(row, unread, kind, format)
        or _prompt(row, record, unread, kind, format)
    )


def words_of(name: str) -> frozenset[str]:
    """Return the words of a key's name in lower case: `scoreChosen` and `score_chosen` have the same."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name[:80])
    return frozenset(re.findall(r"[a-z]+", parted.lower()))


def looks_like_prompt(name: str, content: object) -> bool:
    """Return whether a key that no format knows may hold a prompt: by its name, or as a text of several words."""
    text, words = _text(content), words_of(name)
    if not text or words & OTHER_WORDS:
        return False
    return bool(words & PROMPT_WORDS) or len(text.split()) > 2


def _text(content: object) -> str:
    """Return a text, or the texts of a list of messages or of turns in pairs, with single spaces; empty for others."""
    return " ".join(" ".join(_texts(content)).split())


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            yield from _texts(part.get("content") if isinstance(part, dict) else part)


def _prompt(row: Row, record: Record, unread: Row, kind: str, format: str) -> str:
    """Return why the prompt of a record may not be the whole prompt of its row."""
    prompt = record if isinstance(record, Prompt) else record.prompt
    known = _text([prompt.context or "", prompt.input_text, *(turn.content for turn in prompt.messages)])
    is_implicit = format == "trl" and row.get("prompt") is None and isinstance(row.get("chosen"), str)
    if isinstance(record, Demonstration) and kind == "text":
        known, names = _text(record.output_text), [key for key in unread if key in BESIDE_A_TEXT]
        what = "stands beside text, the plain text to learn"
    elif is_implicit:
        names = [key for key in unread if looks_like_prompt(key, unread[key])]
        what = "may be the prompt, since the row has no key prompt"
    else:
        names = [key for key in unread if key.lower() in BESIDE_A_PROMPT]
        what = "stands beside the prompt and is not in it"
    if isinstance(record, Preference) and format == "trl" and _is_repeated(prompt.input_text, record):
        return (
            "unclear prompt: chosen and rejected begin with the prompt, which would be there twice; cut it off, or say "
            "--columns extra=prompt (in a recipe data.columns) to take their common beginning for it"
        )
    names = [key for key in names if (text := _text(unread[key])) and text not in known]
    return f"unclear prompt: {_listed(names)} {what}; {_way(names, row)}" if names else ""


def _is_repeated(prompt: str, pair: Preference) -> bool:
    """Return whether both answers begin with a prompt of several words."""
    words = prompt.strip()
    return len(words.split()) > 2 and all(text.strip().startswith(words) for text in (pair.chosen, pair.rejected))


def _listed(names: list[str]) -> str:
    return ", ".join(name[:40] for name in names[:4])


def _way(names: list[str], row: Row) -> str:
    """Return the `--columns` with which the user says what keys mean."""
    if isinstance(row.get("text"), str) and not row.keys() & {"prompt", "input_text", "chosen", "messages"}:
        return (
            "say which key is the prompt and which the answer, for example --columns prompt=instruction,completion="
            f"output (in a recipe data.columns), or --columns extra={names[0][:40]} where it means nothing"
        )
    own = [key for key in ("prompt", "input_text") if isinstance(row.get(key), str)][:1]
    parts = [name for name in names if name not in SYSTEM]
    parts = sorted([*parts, *own], key=lambda name: 2 if name == "input" else int(name in own))
    meanings = [f"context={name}" for name in names if name in SYSTEM][:1]
    if len(parts) > len(own):
        meanings.append(f"{own[0] if own else 'prompt'}={'+'.join(name[:40] for name in parts[:4])}")
    return (
        f"say what the keys mean, for example --columns {','.join(meanings)} (in a recipe data.columns), or "
        f"--columns extra={names[0][:40]} where it means nothing"
    )


def _verdict(row: Row, unread: Row, kind: str, format: str) -> str:
    """Return which key may turn the meaning of a row around."""
    if kind == "prompt":
        return ""
    names = [key for key, content in unread.items() if _speaks_against(key, content)]
    if kind == "text" or format == "gcpc":  # class labels are common beside a text, and remarks beside a choice
        names = [key for key in names if key.lower() == "label" and str(unread[key]).lower() == "false"]
    if kind == "demonstration":
        names += [key for key, content in unread.items() if words_of(key) & SCALES and _is_number(content)]
        messages = row.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        if isinstance(last, dict) and last.get("weight") == 0:
            return "unclear label: the weight of the last message is 0, so it is not to be learned; remove the row"
    if kind == "preference" and format != "gcpc":
        names += [key for key, content in unread.items() if key.lower() in CHOICES and content is not None]
        names += _contradicting(unread)
    if not names:
        return ""
    shown = repr(unread[names[0]])[:20]
    what = {"preference": "the choice", "text": "the text"}.get(kind, "the answer")
    thumbs = "; thumbs are `data check --kind feedback`" if kind == "demonstration" else ""
    return (
        f"unclear label: {names[0][:40]} is {shown}, which may speak against {what}; remove the rows that are not to "
        f"be learned, or say --columns extra={names[0][:40]} (in a recipe data.columns) where it does not{thumbs}"
    )


def _speaks_against(name: str, content: object) -> bool:
    """Return whether a key says that the answer is not a good one, or says neither yes nor no of it."""
    words = words_of(name)
    is_for, is_against = bool(words & FOR or words == {"is", "chosen"}), bool(words & AGAINST)
    if isinstance(content, str):
        text = content.strip().lower()
        return text in (NO if is_for else YES if is_against else ())
    if isinstance(content, bool | int | float):
        return content != 1 if is_for else content != 0 if is_against else False
    return False


def _is_number(content: object) -> bool:
    if isinstance(content, list | dict):
        parts = list(content.values() if isinstance(content, dict) else content)
        return bool(parts) and all(_is_number(part) for part in parts)
    if isinstance(content, str):
        return bool(re.fullmatch(r"\s*-?\d+(\.\d+)?\s*(/\s*\d+\s*)?", content))
    return isinstance(content, bool | int | float)


def _contradicting(unread: Row) -> list[str]:
    """Return keys with numbers by which the rejected answer is the better one."""
    numbers = {key: content for key, content in unread.items() if isinstance(content, int | float)}
    names = [key for key, content in numbers.items() if key.lower() == "margin" and content < 0]
    for key, content in numbers.items():
        words = words_of(key)
        others = [other for other in numbers if words_of(other) == (words - {"chosen"}) | {"rejected"}]
        if "chosen" in words and words & SCALES and others:
            less, more = (content, numbers[others[0]]) if not words & {"rank"} else (numbers[others[0]], content)
            names += [key] if less < more else []
    return names


def _several_answers(row: Row, unread: Row, kind: str) -> str:
    """Return which keys hold more answers than the record has, with a verdict on them."""
    if kind == "text":
        return ""
    numbered = [
        key for key, content in row.items() if NUMBERED.fullmatch(key) and isinstance(content, str | dict | list)
    ]
    if kind == "preference":
        names = [key for key in numbered if key in unread and key.lower().startswith("candidate")]
    else:
        lists = [key for key in unread if key.lower() in LISTS and _count(unread[key]) > 1]
        ranked = [key for key in unread if words_of(key) & VERDICTS] or [
            key for key in lists if _is_ranked(unread[key])
        ]
        names = [*lists, *(numbered if len(numbered) > 1 else ())] if ranked else []
    if not names:
        return ""
    return (
        f"several answers: {_listed(names)} hold answers of which one is better; write a row for each pair, with "
        f"candidate_0, candidate_1 and choice, or say --columns extra={'+'.join(name[:40] for name in names[:4])} (in "
        "a recipe data.columns) to read the row without them"
    )


def _count(content: object) -> int:
    return len(content) if isinstance(content, list | dict) else 0


def _is_ranked(answers: object) -> bool:
    """Return whether the answers in a list are objects with a verdict in them."""
    parts = answers if isinstance(answers, list) else []
    return any(isinstance(part, dict) and any(words_of(str(key)) & VERDICTS for key in part) for part in parts)
