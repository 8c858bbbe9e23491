"""Questions: two answers to one prompt, of which a person chooses the better, or one answer that is good or not."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from preferent.data.types import Choice, Message, Preference, Prompt, digest

Side = Literal["a", "b"]
Asks = Literal["pairs", "thumbs"]
"""What the questions of a database are about: two answers, or one."""
Verdict = Literal["A", "B", "tie", "up", "down"]
VOTED = (
    "model_0",
    "model_1",
    "models",
    "first",
    "both_bad",
    "note",
    "seconds",
    "at",
    "probability",
    "flagged",
    "imported",
    "origin",
)
"""The keys of an exported row that describe the vote. They are dropped when the row is asked again."""
VERDICTS: Mapping[Choice, Verdict] = {0: "A", 1: "B", "tie": "tie"}
"""The verdict for each choice of a preference, where side a is candidate 0."""


@dataclass(frozen=True, slots=True)
class Question:
    """Two answers to one prompt, or one if `b` is None; `id` is the name of the pair, or of the answer, in the data.

    `model_b` of a question about one answer is another model that gave the same answer, or empty.

    `instruction` is the text that preceded the prompt when the models read it, and `context` is the rest of what they
    read. `gold` is the known verdict of a control question. `imported` is a verdict that the data already had; it is
    never shown. `probability` is the probability of selection. `extra` holds the other keys of the data row.
    """

    id: str
    prompt: Prompt
    a: str
    b: str | None
    model_a: str = "a"
    model_b: str = "b"
    instruction: str = ""
    context: str = ""
    gold: Verdict | None = None
    imported: Verdict | None = None
    probability: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A digest of the question, which is the key of its random numbers."""
        return digest("gold" if self.gold else "question", self.id, self.prompt.key, *self.answers)

    @property
    def pair_key(self) -> str:
        """A digest of prompt and answers that does not tell a from b, nor a control question from others: the key of
        selection, assignment and order."""
        return digest(self.prompt.key, *sorted(self.answers))

    @property
    def identical(self) -> bool:
        """Whether both answers are equal. Such a pair is a tie and is not asked."""
        return self.a == self.b

    @property
    def answers(self) -> tuple[str, ...]:
        """Return the answers that are asked about, one or two."""
        return (self.a,) if self.b is None else (self.a, self.b)

    def answer(self, side: Side) -> str:
        """Return the answer of a side of a pair."""
        return self.answers[side == "b"]

    def model(self, side: Side) -> str:
        return self.model_a if side == "a" else self.model_b


def other(side: Side) -> Side:
    return "b" if side == "a" else "a"


def shown(question: Question) -> list[dict[str, str]]:
    """Return the prompt as turns, for the page: an instruction, a system text, then the conversation or the text."""
    prompt = question.prompt
    turns = [("instruction", question.instruction), ("system", prompt.context or "")]
    turns += [(message.role, message.content) for message in prompt.messages] or [("user", prompt.input_text)]
    return [{"role": role, "text": text} for role, text in turns if text]


def from_preference(pair: Preference, gold: bool = False) -> Question:
    """Return the question that a preference row answers. Side a is candidate 0; models are named if the row does."""
    verdict = VERDICTS[pair.choice]
    model_a, model_b = (str(pair.extra.get(f"model_{place}", f"candidate_{place}")) for place in (0, 1))
    id = pair.id or digest(pair.prompt.key, *sorted((pair.candidate_0, pair.candidate_1)))
    extra = {name: value for name, value in pair.extra.items() if name not in VOTED}
    answers = pair.candidate_0, pair.candidate_1
    question = Question(id, pair.prompt, *answers, model_a, model_b, context=text(pair.prompt), extra=extra)
    return dataclasses.replace(question, gold=verdict) if gold else dataclasses.replace(question, imported=verdict)


def text(prompt: Prompt) -> str:
    """Return a prompt as one text, for the columns of a judgment. Each turn follows its role."""
    if not prompt.messages:
        return prompt.input_text
    system = [] if prompt.context is None else [Message("system", prompt.context)]
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in [*system, *prompt.messages])


def row(question: Question) -> dict[str, Any]:
    """Return a question as a JSON object."""
    return dataclasses.asdict(question)


def from_row(values: Mapping[str, Any]) -> Question:
    """Return the question that `row` wrote."""
    prompt = dict(values["prompt"])
    prompt["messages"] = tuple(Message(**message) for message in prompt["messages"])
    return Question(**{**values, "prompt": Prompt(**prompt)})
