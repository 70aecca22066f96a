# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Captions and labels in every script, on machines with and without fonts for them."""

import unicodedata
import warnings

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image, ImageDraw

from trl_progrpo import lettering, plots
from trl_progrpo.monitoring import group_plots
from trl_progrpo.report import charts


PROMPTS = {
    "Chinese": "一只戴着红色帽子的猫", "Japanese": "赤い帽子をかぶった猫、「ねこ」", "Korean": "빨간 모자를 쓴 고양이",
    "Devanagari": "लाल टोपी पहने बिल्ली", "Thai": "แมวสวมหมวกสีแดง", "emoji": "🥷🫠",
}  # fmt: skip
OUR_OWN = ("a cat in a hat", "красная шляпа", "שלום עולם", "مرحبا بالعالم", "ῥήτωρ", "tab\tand ❤️ and e\u0301", "")


class Fake:
    """A font by the letters that it has."""

    style_flags, scalable = 0, True

    def __init__(self, letters):
        self.letters = set(map(ord, letters))

    def get_char_index(self, character):
        return int(character in self.letters)


@pytest.fixture(autouse=True)
def no_fonts(monkeypatch):
    monkeypatch.setattr(lettering, "_installed_fonts", list)
    monkeypatch.setattr(lettering, "_told", set())


def ink(text, letters=None):
    image = Image.new("L", (400, 40), "white")
    lettering.Lettering(20, letters=text if letters is None else letters).draw(
        ImageDraw.Draw(image), (4, 4), text, "black"
    )
    return np.asarray(image) < 128


class TestFallbackFonts:
    @pytest.mark.parametrize("text", PROMPTS.values(), ids=PROMPTS)
    def test_a_font_of_the_machine_is_taken(self, monkeypatch, text):
        fonts = [("latin", Fake("abc")), ("some", Fake(text[:1])), ("all", Fake(text)), ("also", Fake(text))]
        monkeypatch.setattr(lettering, "_installed_fonts", lambda: fonts)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert lettering.fallback_fonts(f"a sign: {text}") == ["all"]

    def test_as_many_fonts_as_there_are_scripts(self, monkeypatch):
        fonts = [(name, Fake(text)) for name, text in PROMPTS.items()]
        monkeypatch.setattr(lettering, "_installed_fonts", lambda: fonts)
        assert sorted(lettering.fallback_fonts(" ".join(PROMPTS.values()))) == sorted(PROMPTS)

    @pytest.mark.parametrize("text", OUR_OWN)
    def test_our_own_font_is_enough(self, monkeypatch, text):
        monkeypatch.setattr(lettering, "_installed_fonts", lambda: pytest.fail("searched"))
        assert lettering.fallback_fonts(text) == []

    @pytest.mark.parametrize(
        ("name", "package"),
        [("Chinese", "fonts-noto-cjk"), ("Japanese", "fonts-noto-cjk"), ("Korean", "fonts-noto-cjk"),
         ("Devanagari", "fonts-noto-core"), ("Thai", "fonts-noto-core"), ("emoji", "fonts-symbola")],
    )  # fmt: skip
    def test_without_a_font_one_warning_names_the_script_and_the_cure(self, tmp_path, name, package):
        picture = Image.new("RGB", (16, 16))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                plots.image_grid([[picture]], ["before"], [PROMPTS[name]], tmp_path / "grid.png")
        assert len(caught) == 1
        message = str(caught[0].message)
        assert name in message
        assert f"apt install {package}`" in message

    def test_scripts_share_a_warning(self):
        with pytest.warns(
            UserWarning, match="Devanagari.*Thai.*fonts-noto-cjk fonts-noto-core fonts-symbola"
        ) as caught:
            lettering.fallback_fonts("".join(PROMPTS.values()))
        assert len(caught) == 1

    def test_fonts_without_outlines_are_left_out(self, monkeypatch, tmp_path):
        monkeypatch.undo()
        broken = tmp_path / "broken.ttf"
        broken.write_bytes(b"no font")
        own = lettering._own_font()
        monkeypatch.setattr(
            font_manager, "findSystemFonts", lambda: [str(broken), lettering._own_font(bold=True), own]
        )
        # Plain before bold.
        assert [path for path, _ in lettering._installed_fonts()] == [own, lettering._own_font(bold=True)]


class TestLettering:
    def test_text_from_the_right_is_in_order(self):
        first, second = ink("א\u05d1"), ink("\u05d1א")
        assert not np.array_equal(first, second)
        # What is read first stands on the right: the same ink as its mirror order forced to run from the left.
        assert np.array_equal(first, ink("\u202d\u05d1א\u202c"))
        assert np.array_equal(ink("שלום"), ink("\u202d" + "שלום"[::-1] + "\u202c"))

    def test_arabic_letters_join(self):
        # Alone, the three letters stand apart, with gaps between them.
        assert ink("ببب").any(axis=0).sum() != ink("ب\u200cب\u200cب").any(axis=0).sum()

    @pytest.mark.parametrize("text", ["word", "Ж", "שלום", "مرحبا", "ῥ"])
    def test_letters_are_drawn_within_their_line(self, text):
        found = ink(text)
        assert found.any()
        columns = found.any(axis=0).nonzero()[0]
        assert columns[-1] - 4 <= lettering.Lettering(20).getlength(text) + 2
        assert not ink(" ").any()
        assert not ink("").any()

    def test_anchors(self):
        image = Image.new("L", (100, 100), "white")
        lettering.Lettering(20).draw(ImageDraw.Draw(image), (50, 50), "HHH", "black", anchor="mm")
        rows, columns = (np.asarray(image) < 128).nonzero()
        assert abs(columns.min() + columns.max() - 100) <= 3
        assert abs(rows.min() + rows.max() - 100) <= 6


class TestWrap:
    @pytest.mark.parametrize("text", [*PROMPTS.values(), "👩\u200d👩\u200d👧" * 3, "🥷🏽" * 5], ids=str)
    def test_nothing_is_lost_and_marks_stay_with_their_letters(self, text):
        font = lettering.Lettering(15)
        lines = plots._wrap(text, font, 110, max_lines=99)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert not any(unicodedata.category(line[0])[0] in "MP" and line[0] != "「" for line in lines)
        assert not any(line[0] in "\u200d🏽" or line[-1] == "\u200d" for line in lines)

    @pytest.mark.parametrize(
        ("text", "mark"),
        [("a sign says שלום in red", "\u200e"), ("שלט אומר hello באדום", "\u200f"), ("قطة cat قبعة", "\u200f")],
    )
    def test_lines_keep_the_direction_of_their_text(self, text, mark):
        font = lettering.Lettering(15)
        lines = plots._wrap(text, font, 1, max_lines=99)
        wide = plots._wrap(text, font, 999)
        assert wide == [text]
        assert any(line.startswith(mark) for line in lines)


class TestPictures:
    @pytest.mark.parametrize("name", ["奖励", "보상", "รางวัล"])
    def test_charts_and_tiles_warn_once_and_keep_the_text(self, tmp_path, name):
        import torch

        log = [{"step": i, "eval_reward": 0.1 * i, f"eval_rewards/{name}/mean": 0.2 * i} for i in range(3)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # The text stays text, and a browser has fonts of its own.
            assert name in charts.chart(lambda width: plots.draw_reward_curve(log, width), "reward")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plots.reward_curve(log, tmp_path / "curve.png")
            plots._rendered(plots.draw_reward_curve(log))
            group_plots._tiles(name, [("", torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [0.5])], 1)
        assert len(caught) == 1
        assert "apt install" in str(caught[0].message)

    def test_charts_take_a_font_that_came_after_matplotlibs_list(self, monkeypatch):
        path = lettering._own_font(bold=True)
        added = []
        monkeypatch.setattr(lettering, "_installed_fonts", lambda: [(path, Fake("奖励"))])
        monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
        monkeypatch.setattr(font_manager.fontManager, "addfont", added.append)
        log = [{"step": 1, "eval_奖励_reward": 0.1}]
        figure = plots.draw_reward_curve(log)
        lettering.letter_figure(figure)
        assert set(added) == {path}
