"""Open WebUI: the export of feedbacks (Evaluations, Feedbacks), and exports of chats with thumbs in them.

A thumb is a vote on one answer. It becomes a pair where another answer to the same question has the opposite thumb, or
where the models were hidden (`meta.arena`) and the answer beside it is in the export; there the program itself counts a
thumb up as won against every answer beside it, and a thumb down as lost. Nothing is made of regenerated answers that
nobody rated.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from preferent.data.formats.feedback.answer_texts import object_of, whole_number
from preferent.data.formats.feedback.chat_tree import ChatTree
from preferent.data.formats.feedback.converted_records import (
    RATED_AGAIN,
    ConvertedRecord,
    FeedbackOptions,
    PlacedRows,
    Row,
    with_equal_weights,
)
from preferent.data.formats.layouts import Unusable, excerpt
from preferent.data.types import Preference, Prompt, Thumb, digest

NO_CONTEXT = "texts retrieved for the question are not in the export, and so not in the prompt"
NO_OTHER = "a vote between hidden models without the other answer in the export: kept as a thumb"
SEVERAL = "a vote between hidden models of which one has several answers, so that the other is unknown: kept as a thumb"
OTHER_CONTEXT = "other texts were retrieved for the other answer, so the two have no prompt in common: kept as a thumb"
SAME_SIDE = "a vote between hidden models whose answers were both rated up, or both down: kept as a thumb"


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """One answer of a chat; `is_good` is None if nobody rated it."""

    id: str
    prompt: Prompt
    text: str
    model: str
    is_good: bool | None


@dataclass(frozen=True, slots=True)
class ChatVote:
    """A thumb on an answer: where it stands, in which chat and under which question, and when it was last changed.

    `beside` are the answers of hidden models it was compared with, `others` those to the same question that the chat
    says were rated.
    """

    place: str
    number: int
    chat: str
    question: str
    answer: RatedAnswer
    at: float
    beside: tuple[RatedAnswer, ...] = ()
    others: tuple[RatedAnswer, ...] = ()
    personal: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def is_feedback(row: Row) -> bool:
    """Return whether a row is a record of the export of feedbacks."""
    parts = row.keys() & {"meta", "snapshot", "version", "created_at", "updated_at", "user_id"}
    return isinstance(row.get("data"), dict) and "type" in row and len(parts) > 2


def is_chat(row: Row) -> bool:
    """Return whether a row is a stored chat."""
    chat = row.get("chat")
    has_history = any(isinstance(object_of(stored).get("history"), dict) for stored in (row, chat))
    return has_history or isinstance(object_of(chat).get("messages"), list)


def feedback(rows: PlacedRows, options: FeedbackOptions) -> list[ConvertedRecord]:
    """Convert the export of feedbacks; a record is one of its rows."""
    votes, dropped = [], {}
    for number, (place, row) in enumerate(rows):
        try:
            if isinstance(row, str):
                raise Unusable(row)
            votes.append(_vote(row, options, place, number))
        except Unusable as reason:
            dropped[number] = ConvertedRecord(place, reason=str(reason), is_fault=isinstance(row, str))
    return _in_order(dropped | _resolved(votes))


def chats(rows: PlacedRows, options: FeedbackOptions) -> list[ConvertedRecord]:
    """Convert exported chats; a record is an answer with a thumb, or a chat without any."""
    votes, dropped, number = [], {}, 0
    for place, row in rows:
        try:
            if isinstance(row, str):
                raise Unusable(row)
            tree = ChatTree.of(row)
        except Unusable as reason:
            dropped[number] = ConvertedRecord(place, reason=str(reason), is_fault=isinstance(row, str))
            number += 1
            continue
        rated = [id for id in tree.answers() if _annotated(tree, id) is not None]
        if not rated:
            dropped[number] = ConvertedRecord(place, reason="no rating: no answer of the chat has a thumb")
            number += 1
        for id in rated:
            try:
                about = {
                    "chat_id": str(row.get("id") or place),
                    "title": row.get("title"),
                    "user_id": row.get("user_id"),
                }
                votes.append(_on(tree, id, _annotated(tree, id) is True, options, ChatPlace(place, number, about)))
            except Unusable as reason:
                dropped[number] = ConvertedRecord(place, reason=str(reason))
            number += 1
    return _in_order(dropped | _resolved(votes))


@dataclass(frozen=True, slots=True)
class ChatPlace:
    """Where a vote stands, its number, and what is said of it."""

    place: str
    number: int
    about: Mapping[str, Any]
    hidden: tuple[str, ...] = ()
    at: float = 0.0


def _in_order(converted: Mapping[int, ConvertedRecord]) -> list[ConvertedRecord]:
    return [converted[number] for number in sorted(converted)]


def _vote(row: Row, options: FeedbackOptions, place: str, number: int) -> ChatVote:
    """Return the thumb in a record of feedback."""
    rated, meta = object_of(row.get("data")), object_of(row.get("meta"))
    if row.get("type") != "rating":
        raise Unusable(f"no rating: the record is of type {excerpt(row.get('type'))}")
    thumb = whole_number(rated.get("rating"))
    if rated.get("rating") in (None, "", 0, "0"):
        raise Unusable("no rating: the thumb was taken back, or never set")
    if thumb not in (1, -1):
        raise Unusable(f"unknown rating: {excerpt(rated.get('rating'))}; a thumb is 1 or -1")
    if not isinstance(row.get("snapshot"), dict) or not row["snapshot"]:
        raise Unusable("no snapshot: the record holds no conversation (a shared export?); export it with the chats")
    tree, id = ChatTree.of(row["snapshot"].get("chat")), str(meta.get("message_id"))
    if id not in tree.messages:
        raise Unusable("no answer: the conversation does not hold the rated message")
    stored = row["snapshot"].get("chat") or {}
    chat = meta.get("chat_id") or row.get("chat_id") or stored.get("id") or row.get("id") or place
    about = {"chat_id": str(chat), "title": _title(stored), "user_id": row.get("user_id")}
    about |= {"comment": rated.get("comment"), "model": rated.get("model_id") or meta.get("model_id")}
    names = rated.get("sibling_model_ids") if meta.get("arena") is True else None
    hidden = tuple(dict.fromkeys(map(str, names))) if isinstance(names, list) else ()
    changed = row.get("updated_at", row.get("created_at"))
    at = float(changed) if isinstance(changed, int | float) and not isinstance(changed, bool) else 0.0
    return _on(tree, id, thumb == 1, options, ChatPlace(place, number, about, hidden, at))


def _title(stored: Mapping[str, Any]) -> object:
    return stored.get("title") or object_of(stored.get("chat")).get("title")


def _on(tree: ChatTree, id: str, is_good: bool, options: FeedbackOptions, at: ChatPlace) -> ChatVote:
    """Return the vote on the answer `id`, with the answers that it can be paired with."""
    if tree.messages[id].get("role") != "assistant":
        raise Unusable("no answer: the rated message is not one of the assistant")
    answer = RatedAnswer(id, tree.prompt(id, options), tree.answer(id, options), _model(tree, id), is_good)
    note = NO_CONTEXT if options.context and tree.lacks_context(id) else ""
    siblings = _readable(tree, tree.siblings(id), options)
    beside = []
    for model in at.hidden:
        theirs = [other for other in siblings if other.model == model]
        beside += theirs if len(theirs) == 1 else []
        note = note or ("" if len(theirs) == 1 else SEVERAL if theirs else NO_OTHER)
    others = tuple(other for other in siblings if other.is_good is not None)
    kept = {key: text for key, text in at.about.items() if key in ("user_id", "title", "comment") and text}
    named = replace(answer, model=answer.model or str(at.about.get("model") or ""))
    question, chat = tree.parents.get(id, ""), digest("open-webui", at.about["chat_id"])
    personal = kept if options.personal else {}
    return ChatVote(at.place, at.number, chat, question, named, at.at, tuple(beside), others, personal, note)


def _readable(tree: ChatTree, ids: Sequence[str], options: FeedbackOptions) -> list[RatedAnswer]:
    """Return the answers that can be read."""
    answers = []
    for id in ids:
        try:
            prompt, text = tree.prompt(id, options), tree.answer(id, options)
        except Unusable:
            continue
        answers.append(RatedAnswer(id, prompt, text, _model(tree, id), _annotated(tree, id)))
    return answers


def _model(tree: ChatTree, id: str) -> str:
    model = tree.messages[id].get("model")
    return model if isinstance(model, str) else ""


def _annotated(tree: ChatTree, id: str) -> bool | None:
    """Return the thumb that the chat itself holds for an answer; None if it has none."""
    thumb = whole_number(object_of(tree.messages[id].get("annotation")).get("rating"))
    return thumb == 1 if thumb in (1, -1) else None


def _resolved(votes: Sequence[ChatVote]) -> dict[int, ConvertedRecord]:
    """Return what each vote became, by its number: the latest vote on an answer counts."""
    converted: dict[int, ConvertedRecord] = {}
    latest: dict[tuple[str, str], ChatVote] = {}
    for vote in sorted(votes, key=lambda vote: (vote.at, vote.number)):
        earlier = latest.get((vote.chat, vote.answer.id))
        if earlier is not None:
            converted[earlier.number] = ConvertedRecord(earlier.place, reason=RATED_AGAIN)
        latest[vote.chat, vote.answer.id] = vote
    questions: defaultdict[tuple[str, str], list[ChatVote]] = defaultdict(list)
    for vote in sorted(latest.values(), key=lambda vote: vote.number):
        questions[vote.chat, vote.question].append(vote)
    for asked in questions.values():
        converted |= _answered(asked)
    return converted


def _answered(votes: Sequence[ChatVote]) -> dict[int, ConvertedRecord]:
    """Return what the votes on answers to one question became: pairs where they say which is better, else thumbs."""
    answers = {other.id: other for vote in votes for other in (*vote.others, *vote.beside)}
    answers |= {vote.answer.id: vote.answer for vote in votes}
    rated = {id: answer.is_good for id, answer in answers.items() if answer.is_good is not None}
    by_answer = {vote.answer.id: vote for vote in votes}
    better = {(a, b) for a, b in product(rated, rated) if rated[a] and not rated[b] and {a, b} & by_answer.keys()}
    notes = {vote.number: vote.note for vote in votes}
    for vote in votes:
        for other in vote.beside:
            if rated.get(other.id, not vote.answer.is_good) == vote.answer.is_good:
                notes[vote.number] = notes[vote.number] or SAME_SIDE
                continue
            better.add((vote.answer.id, other.id) if vote.answer.is_good else (other.id, vote.answer.id))
    pairs: defaultdict[int, list[Preference]] = defaultdict(list)
    paired = set()
    for good, bad in sorted(better):
        sides = [by_answer[id] for id in (good, bad) if id in by_answer]
        if answers[good].text == answers[bad].text:
            continue
        if answers[good].prompt.key != answers[bad].prompt.key:
            notes |= {vote.number: OTHER_CONTEXT for vote in sides}
            continue
        paired |= {vote.number for vote in sides}
        pairs[min(vote.number for vote in sides)].append(_pair(sides[0], answers[good], answers[bad]))
    weighted = iter(with_equal_weights([pair for number in sorted(pairs) for pair in pairs[number]]))
    rows = {number: tuple(next(weighted) for _ in pairs[number]) for number in sorted(pairs)}
    converted = {}
    for vote in votes:
        number, note = vote.number, notes[vote.number]
        if number in paired:
            own = rows.get(number, ())
            converted[number] = ConvertedRecord(
                vote.place, own, joined=not own, note=note if note == NO_CONTEXT else ""
            )
        else:
            converted[number] = ConvertedRecord(vote.place, (_thumb(vote),), note=note)
    return converted


def _pair(vote: ChatVote, good: RatedAnswer, bad: RatedAnswer) -> Preference:
    models = {"model_of_chosen": good.model, "model_of_rejected": bad.model}
    extra = {key: name for key, name in models.items() if name} | _details(vote)
    prompt = replace(good.prompt, group=vote.chat)
    return Preference(prompt, good.text, bad.text, 0, annotator=_annotator(vote), extra=extra, source=vote.place)


def _thumb(vote: ChatVote) -> Thumb:
    extra = ({"model": vote.answer.model} if vote.answer.model else {}) | _details(vote)
    prompt = replace(vote.answer.prompt, group=vote.chat)
    is_good = vote.answer.is_good is True
    return Thumb(prompt, vote.answer.text, is_good, annotator=_annotator(vote), extra=extra, source=vote.place)


def _annotator(vote: ChatVote) -> str | None:
    who = vote.personal.get("user_id")
    return None if who is None else str(who)


def _details(vote: ChatVote) -> dict[str, Any]:
    return {key: text for key, text in vote.personal.items() if key != "user_id"}
