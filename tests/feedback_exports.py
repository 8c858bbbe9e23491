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
