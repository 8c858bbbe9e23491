"""A conversation as a tree of messages, as Open WebUI stores it: answers below one question are its alternatives."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preferent.data.formats.feedback.answer_texts import (
    answer_of,
    object_of,
    objects_of,
    text_of,
    without_reasoning,
)
from preferent.data.formats.feedback.converted_records import FeedbackOptions
from preferent.data.formats.layouts import Unusable, conversation_prompt, excerpt
from preferent.data.types import Message, Prompt

Node = Mapping[str, Any]
RETRIEVALS = ("knowledge_search", "web_search", "sources_retrieved", "queries_generated")
"""Steps of an answer that retrieve texts."""


@dataclass(frozen=True, slots=True)
class ChatTree:
    """The messages of a chat by id, the id above each, and the system text of the chat."""

    messages: Mapping[str, Node]
    parents: Mapping[str, str]
    system: str | None

    @classmethod
    def of(cls, stored: object) -> "ChatTree":
        """Return the tree in a stored chat: `history` with a map or a list of messages, or `messages` alone."""
        outer = object_of(stored)
        inner = object_of(outer.get("chat")) or outer
        lists = [source.get("history") for source in (inner, outer)]
        kept = [history.get("messages") for history in lists if isinstance(history, dict)]
        messages = next(
            (each for each in [*kept, inner.get("messages")] if isinstance(each, dict | list) and each), None
        )
        if messages is None:
            raise Unusable("no conversation: the chat holds no messages")
        nodes = messages.items() if isinstance(messages, dict) else _numbered(messages)
        by_id = {str(id): node for id, node in nodes if isinstance(node, dict)}
        system = object_of(inner.get("params")).get("system") or inner.get("system")
        return cls(
            by_id, _parents(by_id, is_list=isinstance(messages, list)), system if isinstance(system, str) else None
        )

    def answers(self) -> Iterator[str]:
        """Iterate over the ids of the answers."""
        return (id for id, node in self.messages.items() if node.get("role") == "assistant")

    def siblings(self, id: str) -> list[str]:
        """Return the ids of the other answers to the question of an answer."""
        above = self.parents.get(id)
        return [other for other in self.answers() if other != id and above and self.parents.get(other) == above]

    def path(self, id: str) -> list[str]:
        """Return the ids from the first message down to the one above `id`."""
        above: dict[str, None] = {}
        while id in self.parents:
            id = self.parents[id]
            if id in above or id not in self.messages:
                raise Unusable("broken conversation: the messages above the answer are not a branch of a tree")
            above[id] = None
        if not above:
            raise Unusable("broken conversation: no message stands above the answer")
        return [*above][::-1]

    def answer(self, id: str, options: FeedbackOptions) -> str:
        """Return the text of an answer; raise `Unusable` for an error, an unfinished or an edited answer."""
        node = self.messages[id]
        if node.get("error"):
            raise Unusable("failed answer: the program shows an error in its place")
        if node.get("done") is False:
            raise Unusable("unfinished answer: it was stopped before its end")
        original = node.get("originalContent")
        if isinstance(original, str) and original != node.get("content"):
            raise Unusable(
                "edited answer: its text was changed by hand, and the rating does not say which text it means"
            )
        if any(_is_picture(file) for file in objects_of(node.get("files"))):
            raise Unusable("picture: the answer is a picture, which no text can stand for")
        return answer_of(node.get("content"), options)

    def prompt(self, id: str, options: FeedbackOptions) -> Prompt:
        """Return what the answer `id` answers: the branch above it, with the texts that were retrieved for it."""
        path = self.path(id)
        turns = []
        for place, below in zip(path, [*path[1:], id], strict=True):
            node = self.messages[place]
            role, text = node.get("role"), text_of(node.get("content"))
            if role not in ("system", "user", "assistant"):
                raise Unusable(f"bad messages: the role of a message is {excerpt(role)}, not system, user or assistant")
            if not text.strip():
                raise Unusable("empty prompt: a message above the answer has no text")
            if role == "assistant" and not options.reasoning:
                text = without_reasoning(text)
            if role == "user":
                text = self._with_context(place, below, text, options)
            turns.append(Message(role, text))
        has_own = bool(turns) and turns[0].role == "system"
        return conversation_prompt(turns, None if has_own else self.system)

    def lacks_context(self, id: str) -> bool:
        """Return whether texts were retrieved for an answer that the export does not hold."""
        path = self.path(id)
        pairs = [(self.messages[a], self.messages[b]) for a, b in zip(path, [*path[1:], id], strict=True)]
        return any(_lacks_text(question, answer) for question, answer in pairs)

    def _with_context(self, question: str, answer: str, text: str, options: FeedbackOptions) -> str:
        """Return a question after the texts of its files and of what was retrieved for the answer."""
        uploaded = objects_of(self.messages[question].get("files"))
        if any(_is_picture(file) for file in uploaded):
            raise Unusable("picture: the question has a picture, which no text can stand for")
        if not options.context:
            return text
        texts = [*filter(None, map(_file_text, uploaded)), *_sources(self.messages[answer])]
        return "\n\n".join([*dict.fromkeys(texts), text])


def _numbered(messages: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(str(node.get("id", place)) if isinstance(node, dict) else "", node) for place, node in enumerate(messages)]


def _parents(messages: Mapping[str, Node], is_list: bool) -> dict[str, str]:
    """Return the id above each message: as it says, as the one above says, or the one before it in a plain list."""
    parents = {id: str(node["parentId"]) for id, node in messages.items() if node.get("parentId") is not None}
    for id, node in messages.items():
        children = node.get("childrenIds")
        for child in children if isinstance(children, list) else ():
            if str(child) in messages and messages[str(child)].get("parentId") is None:
                parents.setdefault(str(child), id)
    if is_list and not parents:
        ids = list(messages)
        parents = dict(zip(ids[1:], ids, strict=False))
    return parents


def _lacks_text(question: Node, answer: Node) -> bool:
    """Return whether a file or what was retrieved for an answer has no text here."""
    searched = any(step.get("action") in RETRIEVALS for step in objects_of(answer.get("statusHistory")))
    return (searched and not any(_sources(answer))) or not all(map(_file_text, objects_of(question.get("files"))))


def _is_picture(file: Node) -> bool:
    kind = file.get("content_type")
    return file.get("type") == "image" or (isinstance(kind, str) and kind.startswith("image/"))


def _file_text(file: Node) -> str:
    """Return the text of a file or of a collection of texts; empty if the export does not hold it."""
    places = object_of(object_of(file.get("file")).get("data")), object_of(file.get("data")), file
    held = [place.get("content") for place in places]
    return next((text for text in held if isinstance(text, str) and text.strip()), "")


def _sources(answer: Node) -> Iterator[str]:
    """Iterate over the texts that were retrieved for an answer."""
    for source in objects_of(answer.get("sources")):
        documents = source.get("document")
        yield from (text for text in documents if isinstance(text, str)) if isinstance(documents, list) else ()
