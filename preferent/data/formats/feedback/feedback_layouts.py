"""The layouts of exports, and which of them a file has."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from preferent.data.formats.feedback import (
    annotation_tools,
    compared_answers,
    open_webui,
    rated_answers,
    single_answers,
)
from preferent.data.formats.feedback.converted_records import Converter, FeedbackOptions, Row, by_record
from preferent.data.types import Preference, Thumb


@dataclass(frozen=True, slots=True)
class FeedbackLayout:
    """One layout: how it is recognized, and the function that converts its records, those of all files together.

    `has_positions`: it says which answer stood first, so that the pairs keep their order.
    """

    recognizes: Callable[[Row], bool]
    convert: Converter
    has_positions: bool = False


def _alone(
    recognizes: Callable[[Row], bool],
    parse: Callable[[Row, FeedbackOptions], Sequence[Preference | Thumb]],
    has_positions: bool = False,
) -> FeedbackLayout:
    """Return a layout in which each record stands alone."""
    return FeedbackLayout(recognizes, by_record(parse), has_positions)


LAYOUTS: dict[str, FeedbackLayout] = {
    "open-webui": FeedbackLayout(open_webui.is_feedback, open_webui.feedback),
    "open-webui-chat": FeedbackLayout(open_webui.is_chat, open_webui.chats),
    "arena": _alone(compared_answers.is_arena, compared_answers.arena, has_positions=True),
    "label-studio": _alone(annotation_tools.is_label_studio, annotation_tools.label_studio, has_positions=True),
    "argilla": _alone(annotation_tools.is_argilla, annotation_tools.argilla, has_positions=True),
    "pku": _alone(compared_answers.is_pku, compared_answers.pku, has_positions=True),
    "helpsteer3": _alone(compared_answers.is_helpsteer, compared_answers.helpsteer, has_positions=True),
    "shp": _alone(compared_answers.is_shp, compared_answers.shp, has_positions=True),
    "sharegpt": _alone(compared_answers.is_sharegpt, compared_answers.sharegpt),
    "gemini": _alone(compared_answers.is_gemini, compared_answers.gemini, has_positions=True),
    "nectar": _alone(rated_answers.is_nectar, rated_answers.nectar),
    "ultrafeedback": _alone(rated_answers.is_ultrafeedback, rated_answers.ultrafeedback),
    "label-studio-min": _alone(
        annotation_tools.is_label_studio_min, annotation_tools.label_studio_min, has_positions=True
    ),
    "traces": _alone(single_answers.is_trace, single_answers.trace),
    "thumbs": _alone(single_answers.is_labelled, single_answers.labelled),
    "ratings": FeedbackLayout(rated_answers.is_rated, rated_answers.rated),
}
"""The layouts by name, in the order in which a row is compared with them."""


def layout_of(rows: Iterable[object]) -> str:
    """Return the layout of most of the rows, or an empty text if most have none."""
    names = Counter(_layout(row) for row in rows if isinstance(row, dict))
    return names.most_common(1)[0][0] if names else ""


def _layout(row: Row) -> str:
    return next((name for name, layout in LAYOUTS.items() if layout.recognizes(row)), "")
