"""MkDocs hook: links from the pages to files of the repository also work on the site.

On GitHub and in an editor a page links to `../experiments/results/x.json`. The site gets a copy
of each such file, and the link leads there. Markdown files become pages.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def place_of(path: str) -> str:
    """The place on the site of a file of the repository."""
    # MkDocs would take a README of the root for the home page.
    return "readme.md" if path == "README.md" else path.removeprefix("docs/")


def linked(path: str, target: str) -> str:
    """The file that a link of a file leads to, from the root of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the linked files, and the files that linked pages link to."""
    waiting = [f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md")]
    while waiting:
        page = waiting.pop()
        for target in LINK.findall((ROOT / page).read_text()):
            path = linked(page, target)
            if not (ROOT / path).is_file() or files.get_file_from_path(place_of(path)):
                continue
            files.append(File.generated(config, place_of(path), abs_src_path=str(ROOT / path)))
            if path.endswith(".md"):
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to the places on the site."""
    here = os.path.relpath(page.file.abs_src_path or "", ROOT)

    def replace(match: re.Match[str]) -> str:
        path = linked(here, match[1])
        if not (ROOT / path).is_file():
            return match[0]
        return posixpath.relpath(place_of(path), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(replace, markdown)
