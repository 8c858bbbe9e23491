"""Exports of Open WebUI, made here: chats as trees of messages, records of feedback on their answers."""

import json
from pathlib import Path

PERSONAL = "zz-hidden"
"""Begins every text that must not be in what is written: user ids, names, titles, comments."""


def question(id, text, parent=None, **more):
    return {"id": id, "parentId": parent, "childrenIds": [], "role": "user", "content": text, "timestamp": 1} | more


def answer(id, text, parent, model="llama", **more):
    message = {"id": id, "parentId": parent, "childrenIds": [], "role": "assistant", "content": text, "model": model}
    return message | {"modelName": f"{PERSONAL} {model}", "modelIdx": 0, "done": True, "timestamp": 2} | more


def chat(*messages, id="chat-1", level="chat", shape="map", system=None, current=None):
    """A stored chat; with level="top" `history` lies one level higher, with shape="list" its messages are a list."""
    kept = {message["id"]: message | {"childrenIds": []} for message in messages}
    for message in kept.values():
        if message["parentId"] in kept:
            kept[message["parentId"]]["childrenIds"].append(message["id"])
    history = {"messages": kept if shape == "map" else list(kept.values()), "currentId": current or [*kept][-1]}
    inner = {"title": f"{PERSONAL} title", "models": ["llama"], "params": {"system": system} if system else {}}
    outer = {"id": id, "user_id": f"{PERSONAL}-user", "title": f"{PERSONAL} title", "chat": inner, "updated_at": 5}
    (inner if level == "chat" else outer)["history"] = history
    return outer


def record(stored, message, rating, *, siblings=None, arena=False, at=10, id=None, data=None, **more):
    """A record of the export of feedbacks on the answer `message` of a chat."""
    about = {"rating": rating, "model_id": "llama", "sibling_model_ids": siblings, "reason": f"{PERSONAL} reason"}
    about |= {"comment": f"{PERSONAL} comment", "tags": [], "details": {"rating": None}} | (data or {})
    meta = {"arena": arena, "model_id": "llama", "message_id": message, "message_index": 1, "chat_id": stored["id"]}
    return {
        "id": id or f"{PERSONAL}-{message}-{at}",
        "user_id": f"{PERSONAL}-user",
        "version": 0,
        "type": "rating",
        "data": about,
        "meta": meta,
        "snapshot": {"chat": stored},
        "created_at": 1,
        "updated_at": at,
    } | more


def save(folder, rows, name="export.json") -> str:
    path = Path(folder) / name
    path.write_text(json.dumps(rows))
    return str(path)


def generated(rng) -> list:
    """A random export: of feedbacks, or of chats; of every version, with every variation of a chat and of a vote."""
    chats = [_chat(rng, f"{PERSONAL}-chat-{number}") for number in range(rng.randint(1, 4))]
    if rng.random() < 0.2:
        return chats
    rows = []
    for stored in chats:
        history = stored.get("history") or stored["chat"]["history"]
        messages = history["messages"]
        listed = [*messages.values()] if isinstance(messages, dict) else messages
        answers = [message for message in listed if message["role"] == "assistant"]
        rows += [_record(rng, stored, message, answers) for message in answers if rng.random() < 0.7]
    rows += [row | {"updated_at": rng.randint(1, 30), "data": row["data"] | {"rating": -1}} for row in rows[:2]]
    rng.shuffle(rows)
    return rows or [_record(rng, chats[0], {"id": "gone"}, [])]


def _chat(rng, id):
    messages, above = [], None
    for turn in range(rng.randint(1, 3)):
        for branch in range(rng.choice((1, 1, 1, 2))):
            asked = question(f"q{turn}{branch}", rng.choice(("What is tea?", "And coffee?", "Why?", "")), above)
            asked |= rng.choice(({}, {}, {}, {"files": [_file(rng)]}))
            messages.append(asked)
            for number in range(rng.randint(1, 3)):
                model = rng.choice(("llama", "qwen", "phi"))
                messages.append(answer(f"a{turn}{branch}{number}", _text(rng), asked["id"], model, **_variation(rng)))
        above = messages[-1]["id"]
    shape, level = rng.choice(("map", "map", "list")), rng.choice(("chat", "chat", "top"))
    system = rng.choice((None, "Be brief."))
    return chat(*messages, id=id, shape=shape, level=level, system=system)


def _file(rng):
    return rng.choice(
        ({"type": "image"}, {"type": "file", "file": {"data": {"content": "Tea grows."}}}, {"type": "file"})
    )


def _text(rng):
    thought = '<details type="reasoning" done="true">hm</details>\n'
    return rng.choice(
        ("A drink.", "A leaf.", "A rock.", "", f"{thought}A drink.", "<think>cut", "Tea is old and good.")
    )


def _variation(rng):
    return rng.choice(
        (
            *({}, {}, {}, {}),
            {"annotation": {"rating": rng.choice((1, -1, "1", None))}},
            {"error": {"content": "failed"}},
            {"done": False},
            {"originalContent": "Before."},
            {"sources": [{"document": ["Tea is old."], "source": {"name": f"{PERSONAL}.pdf"}}]},
            {"statusHistory": [{"action": "web_search", "done": True, "query": f"{PERSONAL} query"}]},
            {"files": [{"type": "image"}]},
        )
    )


def _record(rng, stored, message, answers):
    siblings = [
        other["model"] for other in answers if other["parentId"] == message.get("parentId") and other is not message
    ]
    rating = rng.choice((1, -1, 1, -1, "1", "-1", None, 5))
    row = record(stored, message["id"], rating, siblings=rng.choice((siblings, None)), arena=rng.random() < 0.4)
    row["updated_at"] = rng.choice((5, 10, 20, None))
    lacking = rng.choice(({}, {}, {}, {}, {"snapshot": None}, {"type": "other"}, {"meta": None}))
    top = {"details": {"rating": 7}, "base_models": {}} if rng.random() < 0.2 else {}
    return row | lacking | top
