"""What later stages need of the data: refused here, before anything is trained, with the setting to change."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TypeVar

from preferent.config import stage_graph
from preferent.config.recipe import Recipe
from preferent.config.sections import paths
from preferent.data import chat_refusals, datasets
from preferent.data.formats import row_reader
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Preference, Prompt, Thumb
from preferent.errors import DataError

T = TypeVar("T", Preference, Prompt, Preference | Thumb)
Parts = Mapping[str, Sequence[T]]


def require(
    recipe: Recipe,
    pairs: Parts[Preference | Thumb],
    prompts: Parts[Prompt],
    load: Callable[[], Sequence[Tokenizer]],
) -> None:
    """Raise `DataError` if nothing is left to train on or to compare on, or if a stage cannot use the rows.

    `load` returns the tokenizers of the models that read conversations.
    """
    _require_prompts(recipe, prompts)
    _require_texts(recipe, load)
    if recipe.preference_dataset is not None:
        _require_pairs(recipe, pairs)


def _require_prompts(recipe: Recipe, prompts: Parts[Prompt]) -> None:
    if not prompts["train"]:
        raise DataError(
            "no prompt is left to train on: the preferences have none (input_text is empty), or all were held out; "
            "name a prompt_dataset, or lower data.validation_share and data.test_share"
        )
    if not prompts["test"]:
        different = len({prompt.key for rows in prompts.values() for prompt in rows})
        raise DataError(
            f"no prompt is left for the test set, on which the models are compared: there are {different} different "
            f"prompts, and data.test_share is {recipe.data.test_share:g}; raise data.test_share, give more prompts, or "
            "name an eval_dataset"
        )


def _require_texts(recipe: Recipe, load: Callable[[], Sequence[Tokenizer]]) -> None:
    """Refuse files of texts that hold rows of another kind, and those for PPO with too many unusable rows."""
    columns = recipe.data.named_columns
    mixed_in = stage_graph.pretraining(recipe) if recipe.method == "reinforcement_learning" else []
    named = {"sft.dataset": [] if recipe.sft is None else paths(recipe.sft.dataset), "ppo.ptx_dataset": mixed_in}
    for field, files in named.items():
        kind = row_reader.detect(files, columns)[0] if files else "text"
        if kind != "demonstration" and kind != "text":
            raise DataError(
                f"{field}: {files[0]}: holds {kind} rows; fine-tuning needs input_text and output_text, or text"
            )
        if files and field == "ppo.ptx_dataset":
            reading = datasets.read(files, kind, "auto", columns)
            row_reader.kept(chat_refusals.without(reading, load, recipe.instruction), recipe.data.max_dropped)


def _require_pairs(recipe: Recipe, feedback: Parts[Preference | Thumb]) -> None:
    pairs = {name: [row for row in rows if isinstance(row, Preference)] for name, rows in feedback.items()}
    thumbs = {name: [row for row in rows if isinstance(row, Thumb)] for name, rows in feedback.items()}
    trained = ["train"] if stage_graph.rewards(recipe) else []
    trained += ["judge"] if stage_graph.judged(recipe) else []
    for name in dict.fromkeys(["train", *trained]):
        is_decided = any(pair.choice != "tie" for pair in pairs[name])
        _require_both_classes(recipe, name, thumbs[name], is_decided, name in trained)
        if not is_decided and not thumbs[name]:
            raise DataError(
                f"no preference is left for the part {name!r}: too few prompts, or only ties; give more preferences, "
                "or set compare.judge: reward to do without an independent judge"
            )
    if recipe.reward.margin and trained:
        _require_strengths(pairs, trained)
    if recipe.method == "kto":
        for name in ("train", "validation", "test"):
            prompts = {pair.prompt.key for pair in pairs[name] if pair.choice != "tie"}
            if len(prompts | {thumb.prompt.key for thumb in thumbs[name]}) == 1:
                raise DataError(
                    f"all preferences of the part {name!r} have the same prompt, and method: kto needs answers to "
                    "others; give more prompts, change data.validation_share and data.test_share, or use method: dpo"
                )


def _require_both_classes(recipe: Recipe, name: str, thumbs: Sequence[Thumb], is_decided: bool, scores: bool) -> None:
    """Refuse thumbs of one class alone, from which nothing can be learned, and thumbs where only pairs are read."""
    classes = {thumb.is_good for thumb in thumbs}
    if len(classes) == 1 and (scores or not is_decided):
        raise DataError(
            f"the part {name!r} has {len(thumbs)} thumbs {'up' if True in classes else 'down'} and none "
            f"{'down' if True in classes else 'up'}: one class alone says nothing; give thumbs of both kinds"
            + (", or leave the thumbs out" if is_decided else ", or pairs")
        )
    if thumbs and not is_decided and recipe.method == "dpo" and name == "train":
        raise DataError(
            f"the part {name!r} has {len(thumbs)} thumbs and no decided pair, and method: dpo learns from pairs alone; "
            "use method: kto"
        )


def _require_strengths(pairs: Parts[Preference], trained: Sequence[str]) -> None:
    """Refuse pairs of which `reward.margin` makes no margin."""
    for pair in chain.from_iterable(pairs.values()):
        if pair.strength is not None and pair.strength < 0 and pair.choice != "tie":
            raise DataError(
                f"{pair.source}: strength is {pair.strength:g}, but a margin (reward.margin) is at least 0; name the "
                "chosen answer in `choice`, not by the sign of the strength"
            )
    for name in trained:
        if not any(pair.strength for pair in pairs[name]):
            raise DataError(
                f"reward.margin is set, but no pair of the part {name!r} has a strength; give strengths, or set no "
                "margin"
            )
