"""MkDocs hooks: add the Markdown files of the project's root to the pages of docs/."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/keras-transfer/keras_transfer"
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


def on_files(files, config):
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, target in PAGES.items():
            text = text.replace(f"]({other}", f"]({target}")
        files.append(File.generated(config, page, content=outside(text, "")))
    return files


def on_page_markdown(markdown, page, **_):
    for source, target in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}")
    return outside(markdown, "../")


def outside(text, up):
    """Point links to other files of the project at the repository."""
    files = r"(LICENSE|CITATION\.cff|(?:notebooks|scripts|tests|serving|keras_transfer)/[^)\s]+)"
    return re.sub(rf"\]\({re.escape(up)}{files}\)", rf"]({REPOSITORY}/blob/main/\1)", text)
