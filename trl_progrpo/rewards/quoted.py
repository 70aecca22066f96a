# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a prompt has in quotation marks. Standard library only."""

from __future__ import annotations

import re


PAIRS = {
    '"': '"',
    "“": "”“",
    "„": "“”",
    "”": "”",
    "«": "»",
    "»": "«",
    "「": "」",
    "『": "』",
    "〝": "〞〟",
    "＂": "＂",
}
"""Marks that open a quoted part -> those that close it: of English, German, French, Swedish, Chinese and Japanese."""

# Single quotes are also apostrophes: they count between words only, and where there is nothing in double quotes.
_SINGLE = re.compile(
    r"(?<!\w)'((?:[^']|'(?=\w))+)'(?!\w)|(?<!\w)[‘‚]((?:[^’‘]|’(?=\w))+)[’‘](?!\w)|(?<!\w)‹([^›]+)›|(?<!\w)›([^‹]+)‹"
)
_SPACE_OR_END = re.compile(r"\s|$")


def quoted_parts(prompt: str) -> list[str]:
    r"""
    Return what a prompt has in quotes, part by part, outermost quotes only.

    * Double quotes of every kind in [`PAIRS`] come first; single ones (`'OPEN'`, `‘OPEN’`) count where there are no double
      ones, or around them.
    * A double quote straight after a digit is inches where it would open a part (`a 5" screen that says "OPEN"`), and inside of
      one where another mark closes it (`"27" TV"`).
    * `\"` inside of a part is a mark of its text; where a part begins with it, it is a mark like any other.

    Args:
        prompt (`str`): any text.

    Raises:
        ValueError: if a `"` is left over, so that nobody can tell which marks belong together.
    """
    singles = list(_SINGLE.finditer(prompt))
    doubles = _double_quoted(prompt)
    around = [
        next(filter(None, part.groups()))
        for part in singles
        # 'tis and '90s begin with an apostrophe.
        if any(part.start() < start and end < part.end() for start, end, _ in doubles)
        and not prompt[part.start() + 1].isdigit()
    ]
    if around:
        return around
    return [text for *_, text in doubles] or [next(filter(None, part.groups())) for part in singles]


def _double_quoted(prompt: str) -> list[tuple[int, int, str]]:
    """Begin, end and text of every part."""
    parts, index = [], 0
    while index < len(prompt):
        mark = prompt[index]
        if mark not in PAIRS or _is_inches(prompt, index):
            index += 1
            continue
        escaped = prompt[index - 1 : index] == "\\"
        end = _closing(prompt, index, escaped)
        if end is None and mark == '"':
            raise ValueError("a double quote has no partner")
        if end is None:
            index += 1
            continue
        text = prompt[index + 1 : end - escaped]
        parts.append((index, end, text if escaped else re.sub(r'\\(["\'“”])', r"\1", text)))
        index = end + 1
    return parts


def _closing(prompt: str, start: int, escaped: bool) -> int | None:
    """Where the part that opens at `start` is closed; one that opens with a backslash closes with one."""
    mark, depth = prompt[start], 0
    closes = PAIRS[mark]
    for index in range(start + 1, len(prompt)):
        here = prompt[index]
        # What opens the English pair may close it too, where nothing else does.
        if here == mark and (mark not in closes or (mark == "“" and "”" in prompt[index:])):
            depth += 1
        elif here in closes and (prompt[index - 1] == "\\") == escaped and not _is_inches_inside(prompt, index):
            if depth == 0:
                return index
            depth -= 1
    return None


def _is_inches(prompt: str, index: int) -> bool:
    return prompt[index] in '"”' and index > 0 and prompt[index - 1].isdigit()


def _is_inches_inside(prompt: str, index: int) -> bool:
    """Whether a mark after a digit leaves the part open, as the next mark can only close it."""
    if not _is_inches(prompt, index) or not _SPACE_OR_END.match(prompt, index + 1):
        return False
    later = prompt.find(prompt[index], index + 1)
    before, after = prompt[later - 1], prompt[later + 1 : later + 2]
    return later > 0 and not before.isspace() and not before.isdigit() and not after.isalnum()
