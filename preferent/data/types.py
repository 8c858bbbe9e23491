"""Records: prompts, preferences, demonstrations, rollouts, judgments.

Records are frozen. A reader sets `source` to `FILE:LINE`, so that later messages can name the place.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

Choice = Literal[0, 1, "tie"]
SEPARATOR = "\n\n\n"
"""The separator between an instruction and the input (GCPC)."""


def digest(*parts: str) -> str:
    """Return sixteen hexadecimal digits that depend only on the parts (SHA-256 of their JSON list)."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt: a text, or a conversation that ends with the user.

    Exactly one of `input_text` and `messages` is filled; in sets of pairs without prompts both are empty.
    `context` is the system text of a conversation (GCPC), `reference` is a known good answer. Rows with the same
    `group` (default: the prompt) are never spread over train, validation and test.
    """

    input_text: str = ""
    messages: tuple[Message, ...] = ()
    context: str | None = None
    reference: str | None = None
    id: str = ""
    group: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def key(self) -> str:
        """Return a digest of the prompt; equal prompts have equal keys."""
        turns = [part for message in self.messages for part in (message.role, message.content)]
        return digest(self.input_text, self.context or "", *turns)

    @property
    def is_empty(self) -> bool:
        return not self.messages and not self.input_text.strip()


@dataclass(frozen=True, slots=True)
class Preference:
    """Two candidate answers to a prompt and the choice between them: 0, 1 or "tie". The position is data.

    `strength` is the clarity of the choice: a larger number is clearer, None is unknown. `weight` is how much the pair
    counts in training, None is 1: pairs that one judgment was cut into share its weight.
    """

    prompt: Prompt
    candidate_0: str
    candidate_1: str
    choice: Choice
    id: str = ""
    strength: float | None = None
    annotator: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    weight: float | None = None

    def swap(self) -> "Preference":
        """Return the same preference with the candidates in the other order."""
        choice: Choice = "tie" if self.choice == "tie" else 1 if self.choice == 0 else 0
        return replace(self, candidate_0=self.candidate_1, candidate_1=self.candidate_0, choice=choice)

    @property
    def chosen(self) -> str:
        """Return the preferred answer; a tie has none."""
        assert self.choice != "tie", "a tie has no chosen answer"
        return self.candidate_1 if self.choice == 1 else self.candidate_0

    @property
    def rejected(self) -> str:
        """Return the other answer; a tie has none."""
        assert self.choice != "tie", "a tie has no rejected answer"
        return self.candidate_0 if self.choice == 1 else self.candidate_1

    @property
    def sides(self) -> tuple[str, str]:
        """Return the preferred and the other answer; those of a tie in their order."""
        return (self.candidate_0, self.candidate_1) if self.choice == "tie" else (self.chosen, self.rejected)


@dataclass(frozen=True, slots=True)
class Thumb:
    """One answer to a prompt, and whether a person found it good: feedback without a second answer."""

    prompt: Prompt
    output_text: str
    is_good: bool
    id: str = ""
    annotator: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def sides(self) -> tuple[str | None, str | None]:
        """Return the answer as the preferred one of two or as the other one, and None in place of the second."""
        return (self.output_text, None) if self.is_good else (None, self.output_text)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with an answer to imitate; an empty prompt makes it plain text."""

    prompt: Prompt
    output_text: str
    id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer as token ids, exactly as it is trained on.

    `prompt_ids` [P] and `ids` [A] are int32 (`ids` includes the closing EOS where `ended`);
    `sampler_log_probs` [A] float32 are those of the sampler, at its temperature, in nats.
    `scores` holds one raw number per reward, by name.
    """

    prompt_index: int
    sample_index: int
    policy_step: int
    prompt_ids: np.ndarray
    ids: np.ndarray
    sampler_log_probs: np.ndarray
    ended: bool
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgment:
    """A judge's verdict on two answers to one prompt: `choice` is "A", "B" or "tie".

    `confidence` in [0.5, 1] is the probability that the judge gives its choice (0.5 for a tie).
    """

    id: str
    inference_instruction: str
    inference_context: str
    response_a: str
    response_b: str
    choice: Literal["A", "B", "tie"]
    confidence: float
    judge: str
    explanation: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as a model reads it: text with instruction and template, and token ids. Only the ids are ever cut.

    `end` is the id that closes a complete answer to it.
    """

    text: str
    ids: list[int]
    cut: bool
    end: int


Record = Preference | Prompt | Demonstration | Thumb
"""A row of any kind."""
