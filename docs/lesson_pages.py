"""Shows the notebooks of the lessons as pages of the site: text as it is, code, and the outputs that are stored.

mkdocs calls `on_files`; a notebook stays in the site too, to be downloaded.
"""

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page beside each notebook."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        name = notebook.src_uri.removesuffix(".ipynb")
        files.append(File.generated(config, f"{name}.md", content=page(Path(config.docs_dir, notebook.src_uri))))
    return files


def page(notebook: Path) -> str:
    """Return a notebook as Markdown, with a link to the file after its title."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = [part for cell in cells for part in _cell(cell)]
    return "\n\n".join([*parts[:1], f"[Download this notebook]({notebook.name})", *parts[1:]]) + "\n"


def _cell(cell: dict[str, Any]) -> list[str]:
    source = _text(cell["source"])
    if cell["cell_type"] != "code":
        return [source]
    return [_block("python", source), *(_output(each) for each in cell["outputs"])]


def _output(output: dict[str, Any]) -> str:
    """Return what a cell printed, drew or ended with, in the form that says most."""
    if output["output_type"] == "stream":
        return _block("text", _text(output["text"]))
    if output["output_type"] == "error":
        return _block("text", f"{output['ename']}: {output['evalue']}")
    forms = output["data"]
    if "image/png" in forms:
        said = _text(forms.get("text/plain", "")).replace('"', "'")
        return f'<img alt="{said}" src="data:image/png;base64,{_text(forms["image/png"]).strip()}">'
    if "image/svg+xml" in forms:
        return f"<div>{_text(forms['image/svg+xml'])}</div>"
    return _text(forms["text/markdown"]) if "text/markdown" in forms else _block("text", _text(forms["text/plain"]))


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def _block(language: str, text: str) -> str:
    classes = ".text .output" if language == "text" else f".{language}"
    return f"````{{ {classes} }}\n{text.rstrip()}\n````"
