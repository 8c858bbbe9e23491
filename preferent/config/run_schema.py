"""The `recipe.yaml` and `stage.json` that a run writes: their schema number, and what those of earlier schemas mean.

Schema 1 (0.1.0) left open fields null, had the settings of the reward in section `ppo`, and no number in `recipe.yaml`.
Everything here is about plain dictionaries, so that a process that only looks at a run imports little.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from preferent.errors import UsageError

SCHEMA = 2
MOVED = {
    "ppo.reward": "reward.sources",
    "ppo.reward_clip": "reward.clip",
    "ppo.missing_eos_score": "reward.missing_eos_score",
    "ppo.overlong_tokens": "reward.overlong_tokens",
    "ppo.overlong_penalty": "reward.overlong_penalty",
    "ppo.normalize_prompts": "reward.normalize_prompts",
}
"""Keys of a recipe of schema 1, and what they are called now."""
ADDED = {"optimizer": "adamw"}
"""Fields that came later, and what stages did that do not know them; without a line here it is null."""


def check(number: Any, path: Path) -> None:
    """Refuse a schema that this version does not know."""
    if number not in range(1, SCHEMA + 1):
        raise UsageError(
            f"{path}: schema {number!r} is not known here, the newest is {SCHEMA}; use the version of preferent that "
            "made the run, or a newer one"
        )


def translated(
    stage: Mapping[str, Any], fields: Mapping[str, Any] | None = None, by_default: Collection[str] = ()
) -> dict[str, Any]:
    """Return a `stage.json` as one of this schema, to compare with `fields`, of which nobody asked for `by_default`.

    A null of schema 1 stands for the value that its field has by default.
    """
    known = {key: value for key, value in ADDED.items() if key in (fields or {})} | stage.get("fields", {})
    if stage.get("schema", 1) != 1:
        return {**stage, "fields": known}
    moved = {MOVED.get(key, key): value for key, value in known.items()}
    filled = {key: value for key, value in (fields or {}).items() if key in by_default and moved.get(key, 0) is None}
    return {**stage, "fields": moved | filled}


def written(values: dict[str, Any], by_default: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `recipe.yaml` holds of a recipe's values: with those that nobody asked for in their places, and again
    under `defaults`."""
    filled = {key: value for key, value in by_default.items() if _holds(values, key, None)}
    for key, value in filled.items():
        _put(values, key, value)
    return {"schema": SCHEMA, **values, "defaults": filled}


def is_written(values: Mapping[str, Any]) -> bool:
    """Return whether the values are those of a run's own `recipe.yaml`.

    It has a number; or, of schema 1, every moved key: it has all fields, and nobody writes all of them.
    """
    return "schema" in values or all(_has(values, key) for key in MOVED)


def reopened(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the values of a recipe as somebody asked for them: in a run's own file, those that nobody asked for are
    open again.
    """
    if not is_written(values):
        return dict(values)
    number = values.get("schema", 1)
    check(number, path)
    kept = {key: value for key, value in values.items() if key not in ("schema", "defaults")}
    if number == 1:
        return _moved(kept)
    by_default = values.get("defaults") or {}
    if not isinstance(by_default, Mapping):
        raise UsageError(f"{path}: defaults: is not a mapping of keys to values, as the run wrote it; remove it")
    for key, value in by_default.items():
        if _holds(kept, key, value):
            _put(kept, key, None)
    return kept


def _moved(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe of schema 1 under the keys of schema 2."""
    moved = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for old, new in MOVED.items():
        section, name = old.split(".")
        _put(moved, new, moved[section].pop(name))
    _put(moved, "compare.micro_batch_tokens", moved["ppo"]["micro_batch_tokens"])
    return moved


def _has(values: Mapping[str, Any], key: str) -> bool:
    """Say whether nested values have a dotted key."""
    section, _, rest = key.partition(".")
    inner = values.get(section)
    return section in values and (not rest or (isinstance(inner, Mapping) and _has(inner, rest)))


def _holds(values: Mapping[str, Any], key: str, value: Any) -> bool:
    """Say whether nested values have this very value under a dotted key."""
    section, _, rest = key.partition(".")
    return _has(values, key) and (_holds(values[section], rest, value) if rest else bool(values[section] == value))


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    section, _, rest = key.partition(".")
    if rest:
        _put(values[section], rest, value)
    else:
        values[section] = value
