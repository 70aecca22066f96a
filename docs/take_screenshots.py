# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Takes the screenshots of docs/monitoring.md from a report, in headless Chromium:

    python docs/take_screenshots.py outputs/shapes-demo/report.html
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from html import escape
from pathlib import Path

from PIL import Image


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FOLDER = Path(__file__).parent / "images"
SHOTS = {"report_desktop.png": (1100, 1475, 1), "report_phone.png": (390, 1215, 2)}
"""File -> width and height of the page in pixels, and screen pixels for each of them."""

PADDING = 500
"""Windows cannot be as narrow as a phone; frames can, and what is beside the frame is cut off."""


def take(report: Path, target: Path, width: int, height: int, scale: int, browser: str) -> None:
    """
    Writes the upper `height` pixels of `report`, laid out for a page `width` pixels wide, as a PNG.

    Raises:
        subprocess.CalledProcessError: if the browser fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        frame, shot = Path(folder, "frame.html"), Path(folder, "shot.png")
        frame.write_text(
            f"<style>body {{ margin: 0 }} iframe {{ border: 0; width: {width}px; height: {height}px }}</style>"
            f'<iframe src="{escape(report.resolve().as_uri())}" scrolling="no"></iframe>'
        )
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={folder}/profile",
            f"--force-device-scale-factor={scale}", f"--window-size={width + PADDING},{height + PADDING}",
            f"--screenshot={shot}", frame.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        with Image.open(shot) as image:
            page = image.convert("RGB").crop((0, 0, width * scale, height * scale))
    page.save(target, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.html of a run")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go (default: docs/images)")
    parser.add_argument("--browser", default=next(filter(None, map(shutil.which, BROWSERS)), BROWSERS[0]))
    arguments = parser.parse_args()
    for name, (width, height, scale) in SHOTS.items():
        target = arguments.folder / name
        take(arguments.report, target, width, height, scale, arguments.browser)
        print(f"{target} ({target.stat().st_size // 1024} KB)")


if __name__ == "__main__":
    main()
