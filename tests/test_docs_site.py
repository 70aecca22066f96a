# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The documentation builds strictly as a site, which has every page and loads nothing from elsewhere."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("benchmarks", "docs", "examples", "mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")


def build(root: Path, site: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(root / "mkdocs.yml")]
    return subprocess.run([*command, "--site-dir", str(site)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "html"
    result = build(ROOT, folder)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    return folder


class Loaded(HTMLParser):
    """What a page makes a browser load."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(attrs.get("src"))
        if tag == "link" and attrs.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(attrs.get("href"))


def test_every_page_is_in_the_site(site):
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 12
    for page in [*pages, Path("CONTRIBUTING.md"), Path("CHANGELOG.md")]:
        name = page.with_suffix("") / "index.html" if page.name != "index.md" else page.with_suffix(".html")
        assert (site / name).is_file(), page
    for file in ("configs/sd35_medium.yaml", "train_shapes.py"):
        assert (site / "examples" / file).is_file()
    assert not list(site.rglob("*_hooks.py"))


def test_links_to_files_outside_of_docs_lead_there(site):
    page = (site / "recipes" / "index.html").read_text(encoding="utf-8")
    assert 'href="../examples/configs/sd15.yaml"' in page
    assert 'href="../docs/' not in "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.html"))


def test_tables_and_code_are_rendered(site):
    page = (site / "metrics" / "index.html").read_text(encoding="utf-8")
    assert page.count("<table>") == 5
    assert "| `" not in re.sub(r"<code>.*?</code>", "", page, flags=re.S)


def test_no_page_loads_anything_from_elsewhere(site):
    found = 0
    for path in site.rglob("*.html"):
        parser = Loaded()
        parser.feed(path.read_text(encoding="utf-8"))
        found += len(parser.addresses)
        for address in parser.addresses:
            assert address is None or not re.match(r"(https?:)?//", address), (path, address)
    assert found > 20


def test_broken_links_fail_the_build(tmp_path):
    for source in SOURCES:
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / source)
    broken = ("nowhere.md", "method.md#no-such-heading", "../no_such_file.py")
    with (tmp_path / "docs" / "data.md").open("a", encoding="utf-8") as page:
        page.write("".join(f"\n[broken]({target})\n" for target in broken))
    result = build(tmp_path, tmp_path / "html")
    assert result.returncode != 0
    warnings = [line for line in result.stderr.splitlines() if "WARNING" in line]
    for told in ("nowhere.md", "#no-such-heading", "no_such_file.py"):
        assert any(told in line for line in warnings), result.stderr
