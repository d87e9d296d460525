"""Hooks of the documentation site: links from a page to files outside docs/.

A link to an image in the repository is copied into the site. A link to another file of the repository becomes its path
as text, because the site contains the documentation only. A link to a file that does not exist stops the build.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
IMAGES = ("benchmarks/results/zoo/*.png",)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's images that pages show."""
    for pattern in IMAGES:
        for path in sorted(ROOT.glob(pattern)):
            relative = path.relative_to(ROOT).as_posix()
            files.append(File(relative, str(ROOT), config["site_dir"], config["use_directory_urls"]))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links that leave docs/."""
    folder = (DOCS / page.file.src_path).parent

    def rewrite(match: re.Match[str]) -> str:
        image, text, target, _anchor = match.groups()
        path = (folder / target).resolve()
        if not path.exists():
            raise PluginError(f"{page.file.src_path}: {target} does not exist")
        if path.is_relative_to(DOCS):
            return match[0]
        relative = path.relative_to(ROOT).as_posix()
        if image:
            up = "../" * len(folder.relative_to(DOCS).parts)
            return f"![{text}]({up}{relative})"
        return f"{text}" if relative in text else f"{text} (`{relative}`)"

    return _LINK.sub(rewrite, markdown)
