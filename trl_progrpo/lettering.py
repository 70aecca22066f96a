# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Text in pictures, in the letters of any script that matplotlib or the machine has a font for."""

from __future__ import annotations

import contextlib
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import ImageDraw

EAST_ASIAN, SYMBOLS = "Chinese, Japanese and Korean", "emoji and symbols"

_told: set[str] = set()


class Lettering:
    """
    Draw text with matplotlib's font renderer, which takes every letter from the first font that has it, joins letters and
    orders those that are read from the right.

    Args:
        size (`int`): of the letters, in pixels.
        bold (`bool`, *optional*, defaults to `False`): in the scripts of our own font.
        letters (`str`, *optional*, defaults to `""`): all text to be drawn; fonts are sought for what our own font lacks.
    """

    def __init__(self, size: int, bold: bool = False, letters: str = ""):
        from matplotlib.font_manager import get_font

        self._font = get_font([_own_font(bold), *fallback_fonts(letters)])
        self.size = size

    def _lay_out(self, text: str) -> Any:
        # Fonts are shared, and so are their sizes.
        self._font.set_size(self.size, 72)
        with one_warning():
            self._font.set_text(text)
        return self._font

    def getlength(self, text: str) -> float:
        """Return the width of a line in pixels."""
        return self._lay_out(text).get_width_height()[0] / 64

    def draw(
        self, canvas: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, fill: str, anchor: str = "la"
    ) -> None:
        """
        Draw one line.

        Args:
            canvas (`PIL.ImageDraw.ImageDraw`): to draw on.
            xy (`tuple[float, float]`): the point that `anchor` is laid on.
            text (`str`): one line.
            fill (`str`): colour.
            anchor (`str`, *optional*, defaults to `"la"`): as Pillow's: "l" or "m" along the line, then "a" (ascender) or "m".
        """
        import numpy as np
        from PIL import Image

        if not text.strip():
            return
        font = self._lay_out(text)
        width, descent, offset = (
            font.get_width_height()[0] / 64,
            font.get_descent() / 64,
            font.get_bitmap_offset()[0] / 64,
        )
        font.draw_glyphs_to_bitmap(antialiased=True)
        mask = Image.fromarray(np.array(font.get_image()))
        ascender, descender = (value * self.size / font.units_per_EM for value in (font.ascender, font.descender))
        baseline = xy[1] + (ascender if anchor[1] == "a" else (ascender + descender) / 2)
        left = xy[0] - (width / 2 if anchor[0] == "m" else 0)
        canvas.bitmap((round(left + offset), round(baseline + descent) - mask.height), mask, fill=fill)


@contextlib.contextmanager
def one_warning() -> Iterator[None]:
    """Leave out matplotlib's warnings of single letters, where [`fallback_fonts`] has told of their script."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def letter_figure(figure: Figure) -> None:
    """Give the texts of a figure, which were set in our own font, fonts for the letters that it lacks."""
    from matplotlib.font_manager import fontManager, get_font
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        paths = fallback_fonts(text.get_text())
        if paths:
            known = {entry.fname for entry in fontManager.ttflist}
            for path in paths:
                # The list is made once per machine, and fonts may have come since.
                if path not in known:
                    fontManager.addfont(path)
            text.set_fontfamily([*text.get_fontfamily(), *(get_font(path).family_name for path in paths)])


def fallback_fonts(letters: str) -> list[str]:
    """
    Return files of the fewest fonts of this machine that have what our own font lacks, and warn once per script of what none
    has.

    Args:
        letters (`str`): any text.
    """
    from matplotlib.font_manager import get_font

    own = get_font(_own_font())
    missing = {ord(c) for c in letters if _is_seen(c) and not own.get_char_index(ord(c))}
    chosen = []
    fonts = _installed_fonts() if missing else []
    while missing:
        # Of equals the first, and those are upright and of plain weight.
        path, has = max(
            ((path, {c for c in missing if font.get_char_index(c)}) for path, font in fonts),
            key=lambda found: len(found[1]),
            default=("", set()),
        )
        if not has:
            _tell(missing)
            break
        chosen.append(path)
        missing -= has
    return chosen


def _own_font(bold: bool = False) -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))


def _installed_fonts() -> list[tuple[str, Any]]:
    """Fonts with outlines, plain ones first; pictures of letters, as of colour emoji, cannot be drawn."""
    from matplotlib.font_manager import findSystemFonts
    from matplotlib.ft2font import FT2Font

    fonts = []
    for path in sorted(findSystemFonts()):
        try:
            font = FT2Font(path)
        except (OSError, RuntimeError):
            continue
        name = font.family_name.casefold()
        if font.scalable and not any(word in name for word in ("color", "colour", "last resort", "blank")):
            fonts.append((path, font))
    serif = ("serif", "batang", "gungseo", "ming", "song", "mono", "pilgi", "graphic")
    return sorted(
        fonts, key=lambda f: (bool(f[1].style_flags), any(word in f[1].family_name.casefold() for word in serif))
    )


def _is_seen(character: str) -> bool:
    """False for what has no shape of its own: blanks, controls, joiners and selectors of variants."""
    return unicodedata.category(character)[0] not in "CZ" and not unicodedata.name(character, "").startswith(
        "VARIATION"
    )


def _tell(missing: set[int]) -> None:
    scripts: dict[str, str] = {}
    for character in map(chr, sorted(missing)):
        scripts.setdefault(_script(character), character)
    new = {script: character for script, character in scripts.items() if script not in _told}
    if not new:
        return
    _told.update(new)
    packages = {EAST_ASIAN: "fonts-noto-cjk", SYMBOLS: "fonts-symbola"}
    wanted = sorted({packages.get(script, "fonts-noto-core") for script in new})
    warnings.warn(
        "No font on this machine has the letters of captions and labels in "
        + "; ".join(f"{script} (such as {character})" for script, character in new.items())
        + f", which are drawn as boxes. Install fonts for them, on Debian and Ubuntu `apt install {' '.join(wanted)}`.",
        stacklevel=2,
    )


def _script(character: str) -> str:
    if unicodedata.category(character) in ("So", "Sk"):
        return SYMBOLS
    if unicodedata.east_asian_width(character) in ("W", "F", "H"):
        return EAST_ASIAN
    return unicodedata.name(character, "unassigned characters").split()[0].capitalize()
