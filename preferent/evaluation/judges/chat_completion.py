"""The request and response bodies of OpenAI-compatible chat completions."""

import json
import re
from collections.abc import Mapping
from typing import Any

from preferent.config.comparison_sections import JudgeSection
from preferent.evaluation.judges import verdict_parsing
from preferent.evaluation.judges.http_client import TransportError
from preferent.evaluation.judges.protocol import Call, Reply

EMPTY = "empty"
ALTERNATIVES = 20
"""Number of alternative tokens that a request asks for: the maximum of OpenAI's endpoint."""
MAY_BE_REFUSED = ("logprobs", "max_tokens", "temperature")
"""Parameters that some endpoints or models refuse, as their error messages name them."""
REFUSALS = (400, 422)
TOO_LARGE = 413
WINDOW = re.compile(r"context[ _](length|size|window)")
LONG = re.compile(r"too (long|large)|exceeds the maximum")
"""Wordings of errors about the length of a question. `LONG` also matches errors about the value of a parameter."""


def temperature(judge: JudgeSection) -> float:
    """Return the temperature of a judge; null in the recipe means 0 for one vote and 1 for several."""
    if judge.temperature is not None:
        return judge.temperature
    return 0.0 if judge.votes == 1 else 1.0


def parameters(judge: JudgeSection) -> dict[str, Any]:
    """Return the parameters that a reply depends on besides model and question."""
    return {"temperature": temperature(judge), "max_tokens": judge.max_tokens, "log_probs": judge.log_probs}


def body(judge: JudgeSection, call: Call, refused: frozenset[str]) -> bytes:
    """Return the request without the `refused` parameters; a refused `max_tokens` is sent under its newer name."""
    messages = [{"role": message.role, "content": message.content} for message in call.messages]
    request: dict[str, Any] = {"model": judge.model, "messages": messages}
    request["max_completion_tokens" if "max_tokens" in refused else "max_tokens"] = judge.max_tokens
    if "temperature" not in refused:
        request["temperature"] = temperature(judge)
    if judge.log_probs and "logprobs" not in refused:
        request |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
    return json.dumps(request, allow_nan=False).encode()


def too_long(status: int, answer: bytes) -> bool:
    """Return whether an error is about the length of this question, so that others may still be answered."""
    message = complaint(answer).lower()
    of_value = any(name in _about(answer) for name in MAY_BE_REFUSED)
    worded = bool(WINDOW.search(message)) or (bool(LONG.search(message)) and not of_value)
    return status == TOO_LARGE or (status in REFUSALS and worded)


def refused(judge: JudgeSection, before: frozenset[str], status: int, answer: bytes) -> str | None:
    """Return the parameter that an error is about, if it was sent and the request can be made without it."""
    message = _about(answer)
    for name in MAY_BE_REFUSED:
        sent = name not in before and (name != "logprobs" or judge.log_probs)
        if status in REFUSALS and sent and name in message:
            return name
    return None


def _about(complaint: bytes) -> str:
    """Return the parameter that an error names in its field `param`, or otherwise all of its text."""
    try:
        named = json.loads(complaint)["error"]["param"]
    except (ValueError, KeyError, TypeError, RecursionError):
        named = None
    return named if isinstance(named, str) else complaint.decode("utf-8", "replace").lower()


def reply(answer: bytes) -> Reply:
    """Return the reply in an answer's body; raise `TransportError` if it has none."""
    choice, used = _choice(answer)
    text, cut = _text(choice), choice.get("finish_reason") == "length"
    if not text.strip() and not cut:
        raise TransportError(EMPTY, f"a reply without text ({choice.get('finish_reason')})")
    return Reply(text, verdict_parsing.probabilities(verdict_parsing.tokens_of(choice)), used, cut)


def _choice(answer: bytes) -> tuple[Mapping[str, Any], int | None]:
    """Return the first choice, which has a message, and the tokens used."""
    start = answer.lstrip()[:200]
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        kind = "HTML" if start.startswith(b"<") else "no JSON"
        raise TransportError(kind, repr(start.decode("utf-8", "replace"))) from None
    try:
        choice = value["choices"][0]
        if not isinstance(choice["message"], dict):
            raise TypeError
        used = (value.get("usage") or {}).get("total_tokens")
    except (KeyError, TypeError, IndexError, AttributeError):
        raise TransportError("wrong JSON", complaint(answer)) from None
    return choice, used if type(used) is int else None


def _text(choice: Mapping[str, Any]) -> str:
    """Return the text of a choice's message, a string or a list of parts, without what UTF-8 cannot encode."""
    content = choice["message"].get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "").encode("utf-8", "replace").decode()


def complaint(answer: bytes) -> str:
    """Return the error message in the body of an answer without a reply, on one line."""
    text = answer.decode("utf-8", "replace")
    try:
        value = json.loads(text)
        message = value["error"]["message"] if isinstance(value["error"], dict) else value["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        message = text
    return " ".join("".join(c if c.isprintable() else " " for c in str(message)).split())[:300] or "nothing"


def filtered(answer: bytes) -> bool:
    """Return whether a content filter, such as Azure's, refused the question."""
    try:
        return bool(json.loads(answer)["error"]["code"] == "content_filter")
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
