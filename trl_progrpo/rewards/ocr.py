# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Whether the text that a prompt asks for can be read in the image."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .base import REWARDS
from .learned_images import to_rgb
from .quoted import quoted_parts


# Measured on rendered words from 64 to 256 pixels: small pictures are enlarged to 128 before detection, and short lines are
# not padded to the length of a sentence; both make reading several times cheaper and cost no accuracy there.
PARAMETERS = {
    "Det.limit_type": "min",
    "Det.limit_side_len": 128,
    "Rec.rec_img_shape": [3, 48, 160],
    # Larger pictures are read at this size; detection takes time per pixel.
    "Global.max_side_len": 512,
    # Upside-down text is no rendered text.
    "Global.use_cls": False,
    "Global.log_level": "error",
    # Rewards run beside sampling, and several processes may share the cores.
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
}

READERS = {
    "ARABIC": ("arabic", "PP-OCRv5"),
    "CYRILLIC": ("cyrillic", "PP-OCRv5"),
    "DEVANAGARI": ("devanagari", "PP-OCRv5"),
    "GREEK": ("el", "PP-OCRv5"),
    "HANGUL": ("korean", "PP-OCRv5"),
    "KANNADA": ("ka", "PP-OCRv4"),
    "LATIN": ("latin", "PP-OCRv5"),
    "TAMIL": ("ta", "PP-OCRv5"),
    "TELUGU": ("te", "PP-OCRv5"),
    "THAI": ("th", "PP-OCRv5"),
}
"""Scripts that the reader in the package does not know, or not whole -> language and version of rapidocr's model that does."""


class OcrReward:
    """
    `1 - edit_distance(read, target) / len(target)`, not below 0: how much of the target text can be read.

    The text-rendering task of Liu et al., "Flow-GRPO: Training Flow Matching Models via Online RL" (arXiv 2505.05470), with one
    difference: there, a picture in which the target occurs among other text has the full reward. Here surplus letters cost
    as much as missing ones, so that writing more never pays, and a picture with twice the text asked for has nothing left.
    White space, case and the width of characters are ignored. Text is read line by line, from the top left.

    The target is the dataset column `text`, where `None` or an empty text means that the reward does not apply. Without such a
    column it is what the prompt has in quotes; several quoted parts are put together in their order.

    * Range: 0 to 1. For Stable Diffusion 3.5 Medium, Flow-GRPO reports a rise from 0.59 to 0.92 (its own definition).
    * Reader: PP-OCRv6 small in rapidocr on onnxruntime, weights in the package; Apache-2.0. It reads Latin letters, Chinese and
      Japanese; the scripts in [`READERS`] are read by models that [`install_reader`] downloads, and no other ones.
    * Cost: CPU only; see docs/benchmarks/rewards.md. Images above 512 pixels are read at 512.

    Raises:
        ValueError: if rapidocr is not installed, a prompt has no target, or no installed model reads it.
    """

    __name__ = "ocr"
    image_type = "pil"
    dataset_columns = ("text",)

    def __init__(self):
        # Language -> engine, and the characters that it can write; None is the reader in the package.
        self._engines: dict[str | None, tuple[Any, frozenset[str]]] = {}
        self._loading = threading.RLock()

    def load(self) -> OcrReward:
        """
        Loads the reader, once; returns itself.

        Raises:
            ValueError: if rapidocr or onnxruntime is not installed.
        """
        self._engine()
        return self

    def check_row(self, prompt: str, **columns) -> None:
        """
        Check that a row has a target, and that it can be read.

        Args:
            prompt (`str`): gives the target where there is no column `text`.
            columns: of which `text` is looked at.

        Raises:
            ValueError: if it has none, or no installed model reads it.
        """
        target = self.check_row_of_server(prompt, **columns)
        if _plain(target) and _is_installed():
            self._language(target)

    def check_row_of_server(self, prompt: str, **columns) -> str:
        """Check that a row has a target, and return it; a server may have models that are not installed here."""
        return self.targets([prompt], [columns["text"]] if "text" in columns else None)[0]

    def targets(self, prompts: Sequence[str], text: Sequence[str | None] | None = None) -> list[str]:
        """
        Return the text that each row asks for, as it is written there; `""` where the reward does not apply.

        Args:
            prompts (`Sequence[str]`): give the targets when there is no column `text`.
            text (`Sequence[str]`, *optional*): that column.

        Raises:
            ValueError: if there is none.
        """
        return _quoted(prompts) if text is None else _column(text)

    def __call__(
        self,
        prompts: Sequence[str],
        images: Sequence[Image.Image],
        text: Sequence[str | None] | None = None,
        **columns,
    ) -> list[float | None]:
        """
        One score per image.

        Args:
            prompts (`Sequence[str]` of length `B`): give the targets when there is no column `text`.
            images (`Sequence[PIL.Image.Image]` of length `B`): of any size and mode; transparency is put on white.
            text (`Sequence[str]` of length `B`, *optional*): the targets.
            columns: further dataset columns and `preview`; not used.

        Raises:
            ValueError: if a target is missing or no text, an entry is not a PIL image, or the reader is not installed.
        """
        targets = self.targets(prompts, text)
        self.load()
        languages = {target: self._language(target) for target in set(targets) if _plain(target) and _is_installed()}
        return [
            text_agreement(self.read(image, *filter(None, [languages.get(target)])), target)
            if _plain(target)
            else None
            for image, target in zip(images, targets)
        ]

    def read(self, image: Image.Image, language: str | None = None) -> str:
        """
        Return all text of an image, line by line from the top left, without separators; `""` where there is none.

        Args:
            image (`PIL.Image.Image`): of any size and mode.
            language (`str`, *optional*): of a model in [`READERS`]; the reader in the package when unset.
        """
        # The reader was trained on images of OpenCV, whose channels go from blue to red.
        pixels = np.ascontiguousarray(np.asarray(to_rgb(image))[:, :, ::-1])
        return "".join(getattr(self._engine(language)[0](pixels), "txts", None) or ())

    def _engine(self, language: str | None = None) -> tuple[Any, frozenset[str]]:
        with self._loading:
            if language not in self._engines:
                self._engines[language] = _load_engine(language)
            return self._engines[language]

    def _language(self, target: str) -> str | None:
        """Of the model that reads `target`; `None` is the reader in the package."""
        foreign = _foreign(target, self._engine()[1])
        if not foreign:
            return None
        scripts = sorted({_script(character) for character in foreign})
        if scripts[0] not in READERS or len(scripts) > 1:
            raise _unreadable(target, foreign, scripts)
        language, version = READERS[scripts[0]]
        if not _model_file(language, version).is_file():
            raise ValueError(
                f"reward `ocr` cannot read {target!r}, as the model for {scripts[0].capitalize()} is not installed; where there "
                'is a network, run `python -c "from trl_progrpo.rewards.ocr import install_reader; '
                f'install_reader({language!r})"`, or leave the row out (`text` None says that the reward does not apply).'
            )
        foreign = set(_plain(target)) - self._engine(language)[1]
        if foreign:
            raise _unreadable(target, foreign, [])
        return language


def install_reader(language: str) -> Path:
    """
    Download the model of one language into rapidocr's folder, where the reward finds it; return the file.

    Args:
        language (`str`): of those in [`READERS`].

    Raises:
        ValueError: if there is no such language, or the model cannot be had.
    """
    versions = dict(READERS.values())
    if language not in versions:
        raise ValueError(f"`language` is {language!r}; use one of {', '.join(versions)}.")
    path = _model_file(language, versions[language])
    try:
        _rapidocr(_parameters(language))
    except Exception as error:  # rapidocr has classes of its own for each thing that may go wrong with a connection
        raise ValueError(
            f"the model {path.name} could not be installed ({error}); put that file into {path.parent}."
        ) from error
    return path


def text_agreement(read: str, target: str) -> float:
    """
    `1 - edit_distance(read, target) / len(target)`, not below 0, with white space, case and width of characters ignored.

    Raises:
        ValueError: if nothing is left of the target.
    """
    read, target = _plain(read), _plain(target)
    if not target:
        raise ValueError("the target text is empty; give at least one letter.")
    # A text longer by the whole target is at 0 already, whatever it says.
    read = read[: 2 * len(target)]
    return max(0.0, 1 - _edit_distance(read, target) / len(target))


def _is_installed() -> bool:
    return find_spec("rapidocr") is not None and find_spec("onnxruntime") is not None


def _model_file(language: str, version: str) -> Path:
    return Path(find_spec("rapidocr").origin).parent / "models" / f"{language}_{version}_rec_mobile.onnx"


def _load_engine(language: str | None) -> tuple[Any, frozenset[str]]:
    parameters = dict(PARAMETERS)
    if language is not None:
        # With a path rapidocr asks nobody for the file.
        path = _model_file(language, dict(READERS.values())[language])
        parameters = {**_parameters(language), "Rec.model_path": str(path)}
    try:
        engine = _rapidocr(parameters)
    except ImportError as error:
        extra = "rapidocr[rtl]" if "bidi" in str(error) else "trl-progrpo[ocr]"
        raise ValueError(
            f'reward `ocr` needs the packages rapidocr and onnxruntime ({error}); run `pip install "{extra}"`.'
        ) from error
    return engine, frozenset(_plain("".join(engine.text_rec.session.get_character_list())))


def _parameters(language: str) -> dict[str, Any]:
    from rapidocr import LangRec, ModelType, OCRVersion

    version = OCRVersion(dict(READERS.values())[language])
    model = {"lang_type": LangRec(language), "ocr_version": version, "model_type": ModelType.MOBILE}
    return {**PARAMETERS, **{f"Rec.{name}": value for name, value in model.items()}}


def _rapidocr(parameters: dict[str, Any]) -> Any:
    import onnxruntime  # noqa: F401
    from rapidocr import RapidOCR

    engine = RapidOCR(params=parameters)
    # It reads its weights at first use, and that of a step it is not asked for never; what it is asked for once stays.
    blank = np.full((64, 64, 3), 255, dtype=np.uint8)
    for use_det in (True, False, True):
        engine(blank, use_det=use_det)
    return engine


def _foreign(target: str, alphabet: frozenset[str]) -> set[str]:
    """Characters that a reader never writes, or, as Greek words, takes for those of another script."""
    plain = _plain(target)
    words = ["".join(word) for script, word in groupby(plain, _script) if script == "GREEK"]
    # One letter alone is a sign, such as that of ohm.
    return set(plain) - alphabet | {letter for word in words if len(word) > 1 for letter in word}


def _script(character: str) -> str:
    """The first word of its name, which for letters and what belongs to them is the script."""
    return unicodedata.name(character, "?").split()[0] if unicodedata.category(character)[0] in "LM" else ""


def _unreadable(target: str, foreign: set[str], scripts: Sequence[str]) -> ValueError:
    named = " and ".join(script.capitalize() for script in scripts if script)
    shown = " ".join(sorted(foreign)[:8])
    return ValueError(
        f"reward `ocr` cannot read {shown} in {target!r}{f' ({named})' if named else ''}: no model of rapidocr has "
        f"{'these characters together' if len(scripts) > 1 else 'them'}; ask for another text, or leave the row out (`text` "
        "None says that the reward does not apply). docs/rewards.md lists the scripts."
    )


def _quoted(prompts: Sequence[str]) -> list[str]:
    targets = []
    for prompt in prompts:
        try:
            target, why = " ".join(quoted_parts(prompt)), "finds nothing in quotes"
        except ValueError as error:
            target, why = "", f"cannot tell what is in quotes ({error})"
        if not _plain(target):
            raise ValueError(
                f"reward `ocr` {why} in the prompt {prompt!r}; put the text to look for in double quotes, or "
                "give the dataset a column `text` (None where the reward does not apply)."
            )
        targets.append(target)
    return targets


def _column(text: Sequence[str | None]) -> list[str]:
    for value in text:
        if value is not None and not isinstance(value, str):
            raise ValueError(
                f"the dataset column `text` holds {value!r}, a {type(value).__name__}; give the text that reward `ocr` looks "
                "for, or None where it does not apply."
            )
    return [value or "" for value in text]


def _plain(text: str) -> str:
    """Without white space, case, width, and what is not seen by itself: joiners, soft hyphens, styles of an emoji."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(
        c for c in folded if not c.isspace() and unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f"
    )


def _edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


REWARDS.register("ocr")(OcrReward())
