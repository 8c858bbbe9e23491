"""Chat completions as OpenAI-compatible endpoints speak of them: the request's body, and what an answer's body says."""

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
"""Tokens of which an endpoint is asked for the probabilities: the most that OpenAI's gives."""
MAY_BE_REFUSED = ("logprobs", "max_tokens", "temperature")
"""Parameters that some endpoints or models do not take, in the words of their complaint."""
REFUSALS = (400, 422)
TOO_LARGE = 413
WINDOW = re.compile(r"context[ _](length|size|window)")
LONG = re.compile(r"too (long|large)|exceeds the maximum")
"""How complaints about the length of one question are worded; the second is also said of a parameter's value."""


def temperature(judge: JudgeSection) -> float:
    """The temperature that a recipe's null stands for."""
    if judge.temperature is not None:
        return judge.temperature
    return 0.0 if judge.votes == 1 else 1.0


def parameters(judge: JudgeSection) -> dict[str, Any]:
    """What a reply depends on besides model and question."""
    return {"temperature": temperature(judge), "max_tokens": judge.max_tokens, "log_probs": judge.log_probs}


def body(judge: JudgeSection, call: Call, refused: frozenset[str]) -> bytes:
    """The request, without the parameters that were refused before; longest reply by its newer name then."""
    messages = [{"role": message.role, "content": message.content} for message in call.messages]
    request: dict[str, Any] = {"model": judge.model, "messages": messages}
    request["max_completion_tokens" if "max_tokens" in refused else "max_tokens"] = judge.max_tokens
    if "temperature" not in refused:
        request["temperature"] = temperature(judge)
    if judge.log_probs and "logprobs" not in refused:
        request |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
    return json.dumps(request, allow_nan=False).encode()


def too_long(status: int, answer: bytes) -> bool:
    """Whether a complaint is about the length of this question, so that others may still be answered."""
    message = complaint(answer).lower()
    of_value = any(name in _about(answer) for name in MAY_BE_REFUSED)
    worded = bool(WINDOW.search(message)) or (bool(LONG.search(message)) and not of_value)
    return status == TOO_LARGE or (status in REFUSALS and worded)


def refused(judge: JudgeSection, before: frozenset[str], status: int, answer: bytes) -> str | None:
    """The parameter that a complaint is about, where it can be asked without and was not yet."""
    message = _about(answer)
    for name in MAY_BE_REFUSED:
        sent = name not in before and (name != "logprobs" or judge.log_probs)
        if status in REFUSALS and sent and name in message:
            return name
    return None


def _about(complaint: bytes) -> str:
    """The parameter that a complaint names in the field for it, else all of its text."""
    try:
        named = json.loads(complaint)["error"]["param"]
    except (ValueError, KeyError, TypeError, RecursionError):
        named = None
    return named if isinstance(named, str) else complaint.decode("utf-8", "replace").lower()


def reply(answer: bytes) -> Reply:
    """The reply in an answer's body; a `Fault` where there is none."""
    choice, used = _choice(answer)
    text, cut = _text(choice), choice.get("finish_reason") == "length"
    if not text.strip() and not cut:
        raise TransportError(EMPTY, f"a reply without text ({choice.get('finish_reason')})")
    return Reply(text, verdict_parsing.probabilities(verdict_parsing.tokens_of(choice)), used, cut)


def _choice(answer: bytes) -> tuple[Mapping[str, Any], int | None]:
    """The first choice, which has a message, and the tokens used."""
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
    """The text of a choice's message: a string or a list of parts; without what UTF-8 cannot hold."""
    content = choice["message"].get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "").encode("utf-8", "replace").decode()


def complaint(answer: bytes) -> str:
    """What the body of an answer without a reply says, on one line."""
    text = answer.decode("utf-8", "replace")
    try:
        value = json.loads(text)
        message = value["error"]["message"] if isinstance(value["error"], dict) else value["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        message = text
    return " ".join("".join(c if c.isprintable() else " " for c in str(message)).split())[:300] or "nothing"


def filtered(answer: bytes) -> bool:
    """Whether the endpoint refused a question for what stands in it, as Azure's does."""
    try:
        return bool(json.loads(answer)["error"]["code"] == "content_filter")
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
