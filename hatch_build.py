"""What the package index shows: README.md, with names of files in the place of links that lead nowhere from there."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def long_description(readme: str) -> str:
    """Return the README without images and comments; a link to a file is its text and the path in the source."""
    text = re.sub(r"<!-- .*? -->\n|!\[[^\]]*\]\((?!https:)[^)]*\)\n\n(?:\([^()]*\)\n\n)?", "", readme)
    return re.sub(r"\[([^\]]+)\]\((?!https:)([^)#]+)[^)]*\)", r"\1 (`\2`)", text)


class ReadmeHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": long_description(readme)}
