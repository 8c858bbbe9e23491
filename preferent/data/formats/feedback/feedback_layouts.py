"""The layouts of exports, and which of them a file has."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from preferent.data.formats.feedback import open_webui
from preferent.data.formats.feedback.converted_records import ConvertedRecord, FeedbackOptions, PlacedRows, Row


@dataclass(frozen=True, slots=True)
class FeedbackLayout:
    """One layout: how it is recognized, and the function that converts its records, those of all files together.

    `has_positions`: it says which answer stood first, so that the pairs keep their order.
    """

    recognizes: Callable[[Row], bool]
    convert: Callable[[PlacedRows, FeedbackOptions], list[ConvertedRecord]]
    has_positions: bool = False


LAYOUTS: dict[str, FeedbackLayout] = {
    "open-webui": FeedbackLayout(open_webui.is_feedback, open_webui.feedback),
    "open-webui-chat": FeedbackLayout(open_webui.is_chat, open_webui.chats),
}
"""The layouts by name, in the order in which a row is compared with them."""


def layout_of(rows: Iterable[object]) -> str:
    """Return the layout of most of the rows, or an empty text if most have none."""
    names = Counter(_layout(row) for row in rows if isinstance(row, dict))
    return names.most_common(1)[0][0] if names else ""


def _layout(row: Row) -> str:
    return next((name for name, layout in LAYOUTS.items() if layout.recognizes(row)), "")
