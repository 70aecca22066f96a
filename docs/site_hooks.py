# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Hooks of `mkdocs build`: the pages and examples beside docs/ belong to the site too, and links to them lead there."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


BESIDE = ["CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"]
BESIDE += [
    f"{folder}/**/*.{ending}" for folder in ("examples", "benchmarks") for ending in ("md", "yaml", "py", "ipynb")
]
"""What the site has beside docs/, relative to the root."""

_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files beside docs/ at the same place below the site's root."""
    root = Path(config.config_file_path).parent
    for pattern in BESIDE:
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links of the repository into those of the site, where docs/ is the root."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri if files.get_file_from_path(uri).generated_by else f"docs/{uri}")

    def of_the_site(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1])).removeprefix("docs/")
        return posixpath.relpath(target, posixpath.dirname(uri) or ".")

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else _LINK.sub(of_the_site, part) for part in parts)
