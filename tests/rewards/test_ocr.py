# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import hashlib
import subprocess
import sys
from base64 import urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from trl_progrpo.rewards import REWARDS, OcrReward, RewardRunner
from trl_progrpo.rewards.ocr import READERS, _parameters, install_reader, text_agreement
from trl_progrpo.rewards.quoted import quoted_parts
from trl_progrpo.testing import check_reward_func


needs_reader = pytest.mark.skipif(
    not (find_spec("rapidocr") and find_spec("onnxruntime")), reason='needs `pip install "trl-progrpo[ocr]"`'
)

WORDS = """OPEN coffee Bakery hello WORLD Pizza garden Welcome music SALE
    Library river Sunday stop Planet Hotel yellow Market dream Exit""".split()
FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"
COLORS = [("#141414", "#f0f0eb"), ("#ffffff", "#1e3ca0"), ("#dc1e1e", "#fae678"), ("#faf0c8", "#3c6e3c")]


def render(text, size, font="DejaVuSans.ttf", color=COLORS[0]):
    """Lines of text in the middle of a square, as large as fits."""
    image = Image.new("RGB", (size, size), color[1])
    draw = ImageDraw.Draw(image)
    for points in range(size // 3, 3, -1):
        font_of_size = ImageFont.truetype(FONTS / font, points)
        left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font_of_size)
        if max(right - left, bottom - top) <= 0.86 * size:
            break
    place = ((size - left - right) / 2, (size - top - bottom) / 2)
    draw.multiline_text(place, text, font=font_of_size, fill=color[0])
    return image


def noise_images():
    """Pure noise of single pixels and of coarse patches."""
    rng = np.random.default_rng(0)
    for size in (64, 128, 256):
        for grain in (1, 8):
            for _ in range(3):
                pixels = rng.integers(0, 256, (size // grain, size // grain, 3), dtype=np.uint8)
                yield Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def ocr():
    return REWARDS.get("ocr").load()


@needs_reader
class TestReading:
    @pytest.mark.parametrize(("size", "least"), [(64, 18), (128, 20), (256, 20)])
    def test_rendered_words(self, ocr, size, least):
        fonts = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf")
        images = [render(word, size, fonts[i // 5], COLORS[i % 4]) for i, word in enumerate(WORDS)]
        rewards = ocr([f'a sign that says "{word}"' for word in WORDS], images)
        assert rewards.count(1.0) >= least, dict(zip(WORDS, rewards))

    def test_noise_is_worth_nothing(self, ocr):
        images = list(noise_images())
        assert max(ocr(['"OPEN"'] * len(images), images)) < 0.1
        read = {ocr.read(image) for image in images}
        for word in ("I", "stop", "a line of several words"):
            assert max(text_agreement(text, word) for text in read) < 0.1

    def test_the_text_of_another_picture(self, ocr):
        images = [render(word, 128) for word in WORDS[:8]]
        rewards = ocr(["a"] * 8, images, text=[*WORDS[1:8], WORDS[0]])
        assert max(rewards) < 0.5
        assert np.mean(rewards) < 0.15

    def test_half_a_text_has_part_of_the_reward(self, ocr):
        images = [render(text, 128) for text in ("HELLO", "HELO", "HE", "HELLO\nTHERE", "HELLO HELLO\nHELLO")]
        assert ocr(["a"] * 5, images, text=["hello"] * 5) == pytest.approx([1.0, 0.8, 0.4, 0.0, 0.0])

    def test_lines_are_read_from_the_top(self, ocr):
        assert ocr(["a"], [render("fresh coffee\nand warm bread", 256)], text=["Fresh Coffee and Warm Bread"]) == [1.0]

    def test_large_and_oblong_pictures(self, ocr):
        wide = Image.new("RGB", (1024, 300), "white")
        wide.paste(render("Library", 256), (700, 20))
        assert ocr(["a"] * 2, [wide, wide.rotate(0).resize((1536, 450))], text=["library"] * 2) == [1.0, 1.0]
        assert ocr(["a"], [Image.new("RGB", (1, 1))], text=["library"]) == [0.0]

    @pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1"])
    def test_other_modes_are_converted(self, ocr, mode):
        assert ocr(["a"], [render("hello", 128).convert(mode)], text=["hello"]) == [1.0]

    def test_black_text_on_transparent_ground(self, ocr):
        image = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
        image.paste((0, 0, 0, 255), mask=render("hello", 128).convert("L").point(lambda value: 255 - value))
        assert ocr(["a"], [image], text=["hello"]) == [1.0]

    def test_from_several_threads(self, ocr):
        images = [render(word, 64) for word in WORDS[:4]]
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(ocr.read, images * 2))
        assert read == [ocr.read(image) for image in images] * 2

    def test_contract(self, ocr):
        report = check_reward_func("ocr", ['"OPEN"', 'a sign that says "EXIT"'])
        assert report.deterministic
        check_reward_func(ocr, ["a", "b", "c"], columns={"text": ["OPEN", None, ""]})

    def test_through_the_runner(self, ocr):
        import torch

        pixels = torch.from_numpy(np.stack([np.asarray(render(word, 64)) for word in ("stop", "river")]))
        images = pixels.permute(0, 3, 1, 2).float() / 255
        rewards = RewardRunner("ocr")(["a", "b"], images, {"text": ["stop", None]})
        assert rewards[0].item() == 1.0
        assert rewards[1].isnan().all()


class Reads(OcrReward):
    """The reward without a reader: every picture says the same."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def load(self):
        return self

    def read(self, image):
        return self.text


class TestTarget:
    @pytest.mark.parametrize(
        ("prompt", "target"),
        [
            ('a sign that says "Hello World"', "helloworld"),
            ("a sign that says “Hello World”", "helloworld"),
            ("a sign that says 'Hello World'.", "helloworld"),
            ("a sign that says ‘Hello World’", "helloworld"),
            ("""the baker's sign says "Joe's" and 'x'""", "joe's"),
            ("the dogs' sign says 'it's'", "it's"),
            ('"open" above, "24 h" below', "open24h"),
            ("'ＯＰＥＮ'", "open"),
        ],
    )
    def test_is_what_the_prompt_has_in_quotes(self, prompt, target):
        assert Reads(target)([prompt], [None]) == [1.0]
        assert Reads(target + "!")([prompt], [None]) == pytest.approx([1 - 1 / len(target)])

    def test_is_the_column_where_there_is_one(self):
        rewards = Reads("open")(['"closed"', "b", "c", "d"], [None] * 4, text=["Open", None, "", "shut"])
        assert rewards == [1.0, None, None, 0.0]

    @pytest.mark.parametrize("prompt", ["a sign", "the baker's and the butcher's signs", '""', '" "'])
    def test_missing(self, prompt):
        with pytest.raises(
            ValueError, match=r"finds nothing in quotes in the prompt .*; put .* or give .* `text`"
        ) as error:
            Reads("")(['"fine"', prompt], [None] * 2)
        assert "\n" not in str(error.value)

    def test_no_text(self):
        with pytest.raises(ValueError, match="the dataset column `text` holds 3, a int; give the text"):
            Reads("")(["a"], [None], text=[3])


class TestAgreement:
    @pytest.mark.parametrize(
        ("read", "target", "expected"),
        [
            ("hello", "hello", 1.0),
            ("HE LLO", "h e l l o", 1.0),
            ("hallo", "hello", 0.8),
            ("hell", "hello", 0.8),
            ("helloo", "hello", 0.8),
            ("ehllo", "hello", 0.6),
            ("", "hello", 0.0),
            ("xyz", "hello", 0.0),
            ("hello world", "hello", 0.0),
            ("hello" * 1000, "hello", 0.0),
            ("，", ",", 1.0),
            ("STRASSE", "straße", 1.0),
            ("你好", "你好", 1.0),
        ],
    )
    def test_values(self, read, target, expected):
        assert text_agreement(read, target) == pytest.approx(expected)

    def test_against_all_alignments(self):
        """The distance, against trying out every edit on short texts."""
        rng = np.random.default_rng(0)

        def distance(a, b):
            if not a or not b:
                return len(a) + len(b)
            best = min(distance(a[1:], b), distance(a, b[1:])) + 1
            return min(best, distance(a[1:], b[1:]) + (a[0] != b[0]))

        for _ in range(60):
            read, target = ("".join(rng.choice(list("abc"), n)) for n in (rng.integers(0, 6), rng.integers(1, 5)))
            assert text_agreement(read, target) == pytest.approx(max(0, 1 - distance(read, target) / len(target)))

    def test_an_empty_target(self):
        with pytest.raises(ValueError, match="target text is empty; give"):
            text_agreement("a", " ")


@pytest.mark.parametrize("missing", ["rapidocr", "onnxruntime"])
def test_without_the_reader_a_sentence_says_what_to_install(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match="reward `ocr` needs the packages rapidocr and onnxruntime") as error:
        OcrReward()(['"open"'], [Image.new("RGB", (64, 64))])
    assert missing in str(error.value)
    assert 'run `pip install "trl-progrpo[ocr]"`' in str(error.value)
    assert "\n" not in str(error.value)


LONELY = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise PermissionError(f"{event} {arguments}")

sys.addaudithook(refuse)
import trl_progrpo.rewards
print(*{name.split(".")[0] for name in sys.modules})
if sys.argv[1:]:
    from PIL import Image
    image = Image.open(sys.argv[1])
    print(trl_progrpo.rewards.REWARDS.get("ocr")(['"open"'], [image]))
"""


def test_imports_are_light_and_nothing_is_downloaded(tmp_path):
    """In a process of its own, in which every connection is an error."""
    render("OPEN", 128).save(tmp_path / "open.png")
    picture = [str(tmp_path / "open.png")] if find_spec("rapidocr") and find_spec("onnxruntime") else []
    done = subprocess.run([sys.executable, "-c", LONELY, *picture], capture_output=True, text=True, check=True)
    loaded, *read = done.stdout.splitlines()
    assert "torch" in loaded.split()
    heavy = {"rapidocr", "onnxruntime", "cv2", "scipy", "transformers", "diffusers", "datasets"}
    assert not heavy & set(loaded.split())
    assert read == ["[1.0]"] * len(picture)


@needs_reader
def test_the_readers_weights_are_files_of_its_package():
    """They came with the wheel: its list of files has each, with the hash of what is there."""
    names = {"PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"}
    files = [file for file in distribution("rapidocr").files if file.name in names]
    assert {file.name for file in files} == names
    for file in files:
        digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
        assert urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value


class TestQuotes:
    @pytest.mark.parametrize(
        ("prompt", "parts"),
        [
            ('a 5" screen that says "OPEN"', ["OPEN"]),
            ('a 5.5" x 7" card: "HI"', ["HI"]),
            ('"27" TV" on a 5" shelf', ['27" TV']),
            ('"OPEN 24" on a 5" screen', ["OPEN 24"]),
            ('"Route 66", "Exit 9"', ["Route 66", "Exit 9"]),
            ("a 6' 2\" man under 'HI'", ["HI"]),
            ("„Hallo“ und »Welt«", ["Hallo", "Welt"]),
            ("« Bonjour » et ”Hej”", [" Bonjour ", "Hej"]),
            ('写着“你好”的「牌子」和"营业24"', ["你好", "牌子", "营业24"]),
            ("“the “best” one”", ["the “best” one"]),
            ('“the "best" one”', ['the "best" one']),
            ("'the \"best\" one'", ['the "best" one']),
            ("\"He said 'hi'\"", ["He said 'hi'"]),
            ("'90s sign \"OPEN\" in the dogs' park", ["OPEN"]),
            ('a \\"OPEN\\" sign', ["OPEN"]),
            ('"say \\"hi\\" now"', ['say "hi" now']),
            ("‚so‘ und ‹so›", ["so", "so"]),
            ("Home » Shop", []),
            ('a 5" screen', []),
        ],
    )
    def test_parts(self, prompt, parts):
        assert quoted_parts(prompt) == parts

    @pytest.mark.parametrize("prompt", ['a 40 " screen that says "HI"', '"OPEN', '"A" and "B'])
    def test_one_without_partner_is_refused(self, prompt):
        with pytest.raises(ValueError, match=r"cannot tell what is in quotes .a double quote has no partner.*`text`"):
            OcrReward().check_row(prompt)


@needs_reader
class TestScripts:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("ПРИВЕТ", r"the model for Cyrillic is not installed; .*install_reader\('cyrillic'\)"),
            ("ΑΘΗΝΑ", r"the model for Greek is not installed; .*install_reader\('el'\)"),
            ("안녕", r"the model for Hangul is not installed; .*install_reader\('korean'\)"),
            ("नमस्ते", r"the model for Devanagari is not installed; .*install_reader\('devanagari'\)"),
            ("สวัสดี", r"the model for Thai is not installed; .*install_reader\('th'\)"),
            ("مرحبا", r"the model for Arabic is not installed; .*install_reader\('arabic'\)"),
            ("Phở", r"the model for Latin is not installed; .*install_reader\('latin'\)"),
            ("שלום", r"\(Hebrew\): no model of rapidocr has them; ask for another text"),
            ("ПРИВЕТ 안녕", r"\(Cyrillic and Hangul\): no model of rapidocr has these characters together"),
            ("OPEN 🫠", "in 'OPEN 🫠': no model"),
        ],
    )
    def test_what_no_installed_model_reads_is_refused(self, ocr, text, said):
        for check in (
            lambda: ocr.check_row(f'a sign that says "{text}"'),
            lambda: ocr.check_row("a sign", text=text),
            lambda: ocr([f'"{text}"'], [Image.new("RGB", (64, 64))]),
        ):
            with pytest.raises(ValueError, match=f"reward `ocr` cannot read .*{said}") as error:
                check()
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "text", ["OPEN", "Straße", "żółć", "İstanbul", "你好", "カフェ", "10 kΩ", "I ❤️ NY", "50 % off – now"]
    )
    def test_what_the_package_reads(self, ocr, text):
        ocr.check_row("a sign", text=text)

    def test_an_installed_model_is_chosen_by_the_script(self, tmp_path, monkeypatch):
        """A copy of the model in the package takes the place of the one for Greek, whose letters it can write."""
        package = Path(find_spec("rapidocr").origin).parent / "models" / "PP-OCRv6_rec_small.onnx"
        monkeypatch.setattr("trl_progrpo.rewards.ocr._model_file", lambda *_: package)
        reward, asked = OcrReward(), []
        monkeypatch.setattr(reward, "read", lambda image, language=None: asked.append(language) or "ΑΘΗΝΑ")
        assert reward(["a"] * 3, [None] * 3, text=["Αθηνα", "OPEN", None]) == [1.0, 0.0, None]
        assert asked == ["el", None]
        with pytest.raises(ValueError, match=r"cannot read .* no model of rapidocr has them"):
            reward.check_row('"ПРИВЕТ"')

    def test_which_can_be_installed(self):
        with pytest.raises(ValueError, match="`language` is 'ru'; use one of arabic, cyrillic"):
            install_reader("ru")

    def test_a_download_that_fails_says_where_the_file_goes(self, monkeypatch):
        def refuse(*_):
            raise OSError("no network")

        monkeypatch.setattr("trl_progrpo.rewards.ocr._rapidocr", refuse)
        with pytest.raises(
            ValueError, match=r"th_PP-OCRv5_rec_mobile.onnx could not be installed \(no network\); put .*models"
        ):
            install_reader("th")

    def test_every_named_model_is_one_of_rapidocr(self):
        from rapidocr.inference_engine.base import InferSession

        for language, version in READERS.values():
            parameters = _parameters(language)
            assert f"{language}_{version}_rec_mobile" in InferSession.model_info.onnxruntime[version].rec
            assert parameters["Rec.ocr_version"].value == version
