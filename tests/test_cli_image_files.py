# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo score` on folders as people have them: damaged, sideways, enormous, of many kinds, in GenEval's layout."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from trl_progrpo.cli.image_files import images_of, suffixes
from trl_progrpo.cli.main import main


OWN = """
def upright(prompts, images, **columns):
    return [float(image.height > image.width) for image in images]

def length(prompts, images, **columns):
    return [float(len(prompt)) for prompt in prompts]

def picky(prompts, images, **columns):
    if any(image.width < 5 for image in images):
        raise RuntimeError("too small")
    return [1.0 if image.width < 9 else float("nan") for image in images]

def together(prompts, images, **columns):
    return [float(len(images))] * len(images)

def away(prompts, images, **columns):
    raise ConnectionError("the server is away")

def objects(prompts, images, include, **columns):
    return [float(len(include[i])) for i in range(len(prompts))]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_rewards.py").write_text(OWN)
    (tmp_path / "images").mkdir()
    return tmp_path


def noise(size=(32, 32), mode="RGB"):
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], bands), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode if bands > 1 else "L")


def score(capsys, *argv, reward="jpeg_compressibility"):
    status = main(["score", "--reward", reward, *argv, "--json"])
    out, err = capsys.readouterr()
    return status, {record["image"]: record for record in map(json.loads, out.splitlines())}, err


def cut(path, share=2):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // share])


def damaged_png(path):
    noise().save(path)
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)


def huge(path):
    Image.new("1", (20_000, 10_000)).save(path)


def cut_save(name):
    def make(path):
        noise((64, 64)).save(path)
        cut(path)

    return name, make


DAMAGED = {
    "truncated JPEG": cut_save("b.jpg"),
    "truncated PNG": cut_save("b.png"),
    "truncated WebP": cut_save("b.webp"),
    "truncated GIF": cut_save("b.gif"),
    "damaged PNG": ("b.png", damaged_png),
    "200 megapixels": ("b.png", huge),
    "32-bit TIFF": ("b.tiff", lambda path: Image.new("F", (8, 8)).save(path)),
    "32-bit integers": ("b.tif", lambda path: Image.new("I", (8, 8)).save(path)),
    "nothing": ("b.png", lambda path: path.write_bytes(b"")),
    "a text": ("b.jpg", lambda path: path.write_text("no image")),
    "a link to nowhere": ("b.png", lambda path: path.symlink_to("gone.png")),
    "a link to itself": ("b.png", lambda path: path.symlink_to("b.png")),
    "wider than a JPEG": ("b.png", lambda path: Image.new("L", (70_000, 1)).save(path)),
}


class TestDamaged:
    @pytest.mark.parametrize("kind", DAMAGED)
    def test_one_does_not_cost_the_others(self, here, capsys, kind):
        name, make = DAMAGED[kind]
        for other in ("a.png", "c.png"):
            noise().save(here / "images" / other)
        make(here / "images" / name)
        status, records, err = score(capsys, "images", "--output", "scores.jsonl")
        assert status == 1
        assert err.count(name) == 1
        wrong = (
            "has no score: reward `jpeg_compress" if kind == "wider than a JPEG" else "cannot be read as an image ("
        )
        assert f"'images/{name}' {wrong}" in err
        assert "1 of 3 images without a score" in err
        assert "Traceback" not in err
        assert records[f"images/{name}"]["rewards"] == {"jpeg_compressibility": None}
        assert records[f"images/{name}"]["error"]
        for other in ("a.png", "c.png"):
            assert records[f"images/{other}"]["rewards"]["jpeg_compressibility"] < 0
            assert "error" not in records[f"images/{other}"]
        assert len((here / "scores.jsonl").read_text().splitlines()) == 3

    def test_a_row_whose_file_is_missing(self, here, capsys):
        noise().save(here / "images/a.png")
        rows = [{"file_name": "a.png", "prompt": "x"}, {"file_name": "gone.png", "prompt": "y"}]
        (here / "images/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        status, records, err = score(capsys, "images")
        assert (status, len(records)) == (1, 2)
        assert (
            "gone.png' cannot be read as an image (line 2 of metadata.jsonl: No such file or directory); give" in err
        )

    def test_tables_are_over_those_that_can_be_read(self, here, capsys):
        for other in ("a.png", "c.png"):
            noise().save(here / "images" / other)
        (here / "images/b.png").write_bytes(b"")
        assert main(["score", "--reward", "jpeg_compressibility", "images"]) == 1
        assert "over 2 images" in capsys.readouterr().out

    def test_none_that_can_be_read_is_one_sentence(self, here, capsys):
        for name in ("a.png", "b.jpg"):
            (here / "images" / name).write_bytes(b"")
        status, records, err = score(capsys, "images")
        assert (status, records) == (2, {})
        assert "'images/a.png' cannot be read as an image" in err
        assert "None of the 2 images has a score." in err

    @pytest.mark.parametrize("size", [(1, 8), (32, 8)], ids=["raised", "not a number"])
    def test_one_that_a_reward_fails_on(self, here, capsys, size):
        for index in range(4):
            noise((8, 8) if index != 2 else size).save(here / f"images/{index}.png")
        status, records, err = score(capsys, "images", "--prompt", "x", reward="own_rewards:picky")
        assert status == 1
        assert [record["rewards"]["picky"] for record in records.values()] == [1.0, 1.0, None, 1.0]
        assert "'images/2.png' has no score: reward function `picky` r" in err
        assert "1 of 4 images without a score" in err

    def test_one_to_blame_in_a_batch_does_not_cost_the_batch(self, here, capsys):
        rows = [{"file_name": "a.png", "prompt": "x", "include": value} for value in ([1], None, [1, 2])]
        noise().save(here / "images/a.png")
        (here / "images/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert main(["score", "--reward", "own_rewards:objects", "images", "--json"]) == 1
        out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [record["rewards"]["objects"] for record in out] == [1.0, None, 2.0]
        assert "has no len()" in out[1]["error"]

    def test_a_row_that_a_reward_refuses(self, here, capsys):
        noise().save(here / "images/a.png")
        rows = [{"file_name": "a.png", "prompt": prompt} for prompt in ("a red circle", "a photo of a cat")]
        (here / "images/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert main(["score", "--reward", "shapes", "images", "--json"]) == 1
        fine, refused = (json.loads(line) for line in capsys.readouterr().out.splitlines())
        assert fine["rewards"]["shapes"] is not None
        assert refused["error"].startswith("has no score: reward `shapes`")
        (here / "images/metadata.jsonl").write_text(json.dumps(rows[1]))
        assert main(["score", "--reward", "shapes", "images"]) == 2

    @pytest.mark.parametrize("reward", ["objects", "away"])
    def test_a_reward_that_has_none_for_any_image_is_one_sentence(self, here, capsys, reward):
        for index in range(2):
            noise().save(here / f"images/{index}.png")
        status, records, err = score(capsys, "images", "--prompt", "x", reward=f"own_rewards:{reward}")
        assert (status, records, err.count("\n")) == (2, {}, 1)
        assert f"reward function `{reward}` raised" in err

    def test_what_pillow_says_of_a_file_names_it(self, here):
        noise().save(here / "images/a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05zzzz")
        (file,) = images_of("images", prompt="x")
        with pytest.warns(UserWarning, match="images/a.png': Corrupt EXIF data"):
            assert file.open().size == (32, 32)

    def test_large_images_do_not_share_a_batch(self, here, capsys, monkeypatch):
        monkeypatch.setattr("trl_progrpo.cli.score.PIXELS", 2 * 32 * 32)
        for index in range(5):
            noise().save(here / f"images/{index}.png")
        status, records, _ = score(capsys, "images", "--prompt", "x", reward="own_rewards:together")
        assert status == 0
        assert [record["rewards"]["together"] for record in records.values()] == [2, 2, 2, 2, 1]

    def test_a_name_that_is_not_unicode(self, here, capsys):
        noise().save(here / "images/a.png")
        try:
            (here / "images/a.png").rename(os.fsdecode(os.fsencode(here) + b"/images/\xff.png"))
        except OSError:
            pytest.skip("the file system takes Unicode names only")
        score(capsys, "images", "--output", "scores.jsonl")
        (record,) = map(json.loads, (here / "scores.jsonl").read_text(encoding="utf-8").splitlines())
        assert os.fsencode(record["image"]) == b"images/\xff.png"


class TestOrientation:
    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff"])
    @pytest.mark.parametrize("orientation", [6, 8])
    def test_images_are_upright(self, here, capsys, name, orientation):
        tag = Image.Exif()
        tag[0x0112] = orientation
        Image.new("RGB", (80, 40), "red").save(here / "images" / name, exif=tag)
        Image.new("RGB", (40, 80), "red").save(here / "images/plain.png")
        status, records, _ = score(capsys, "images", "--prompt", "x", reward="own_rewards:upright")
        assert status == 0
        assert [record["rewards"]["upright"] for record in records.values()] == [1.0, 1.0]

    def test_a_reward_server_turns_them_too(self):
        import io

        from trl_progrpo.reward_server.wire import decode_image

        tag, data = Image.Exif(), io.BytesIO()
        tag[0x0112] = 6
        Image.new("RGB", (80, 40), "red").save(data, "PNG", exif=tag)
        assert decode_image(data.getvalue(), 0, 10_000).shape == (80, 40, 3)


class TestFolders:
    KINDS = ("a.png", "b.gif", "c.tiff", "d.jfif", "e.JPG", "f.bmp", "g.ppm", "h.webp", "i.tif", "j.mpo")

    def test_every_kind_of_a_named_file_is_found_in_a_folder(self, here, capsys):
        for name in self.KINDS:
            noise().save(here / "images" / name, format={"jfif": "JPEG", "JPG": "JPEG"}.get(name[2:]))
        (here / "images/c.txt").write_text("a prompt")
        (here / "images/.hidden").write_text("")
        status, records, err = score(capsys, "images")
        assert (status, err) == (0, "")
        assert sorted(records) == [f"images/{name}" for name in self.KINDS]

    def test_what_is_left_out_is_said(self, here):
        noise().save(here / "images/a.png")
        for folder in ("sub", "x.png"):
            (here / "images" / folder).mkdir()
        (here / "images/film.mp4").write_bytes(b"")
        with pytest.warns(UserWarning, match="left out") as warned:
            files = images_of("images", prompt="x")
        assert [file.path.name for file in files] == ["a.png"]
        said = " ".join(str(warning.message) for warning in warned)
        assert "2 subfolders left out (sub/, x.png/); give them as further arguments" in said
        assert "1 file left out (film.mp4)" in said

    def test_images_that_metadata_leaves_out_are_said(self, here):
        (here / "images/sub").mkdir()
        (here / "images/more").mkdir()
        for name in ("a.png", "b.png", "c.JPG", "sub/d.png"):
            noise().save(here / "images" / name)
        rows = [{"file_name": name, "prompt": "x"} for name in ("a.png", "sub/d.png")]
        (here / "images/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.warns(UserWarning, match="left out") as warned:
            assert len(images_of("images")) == 2
        said = " ".join(str(warning.message) for warning in warned)
        assert "2 unlisted images left out (b.png, c.JPG); give each a row in metadata.jsonl" in said
        assert "1 subfolder left out (more/)" in said

    def test_prompts_in_capitals_of_names_in_capitals(self, here):
        noise().save(here / "images/CAT.PNG")
        (here / "images/CAT.TXT").write_text("a cat")
        assert [file.prompt for file in images_of("images")] == ["a cat"]

    def test_a_folder_called_samples_is_not_yet_genevals(self, here):
        (here / "images/samples").mkdir()
        noise().save(here / "images/samples/a.png")
        rows = [{"file_name": "samples/a.png", "prompt": prompt} for prompt in "xy"]
        (here / "images/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert [file.prompt for file in images_of("images")] == ["x", "y"]

    def test_a_prompt_without_images_is_said(self, here):
        noise().save(here / "images/a.png")
        (here / "images/00000/samples").mkdir(parents=True)
        (here / "images/00000/metadata.jsonl").write_text('{"prompt": "x"}')
        with pytest.warns(UserWarning, match="00000/samples' holds no images"):
            assert len(images_of("images", prompt="x")) == 1

    def test_rows_may_name_images_in_the_home_folder(self, here, monkeypatch):
        monkeypatch.setenv("HOME", str(here))
        noise().save(here / "images/a.png")
        (here / "rows.jsonl").write_text(json.dumps({"image": "~/images/a.png", "prompt": "x"}))
        assert images_of("rows.jsonl")[0].path == here / "images/a.png"

    @pytest.mark.parametrize("text", ["[1]", '"dog"', "null", '{"prompt": "x"}\n{"prompt": "y"}', "{"])
    def test_genevals_metadata_of_another_shape_is_a_sentence(self, here, capsys, text):
        (here / "images/00000/samples").mkdir(parents=True)
        noise().save(here / "images/00000/samples/0000.png")
        (here / "images/00000/metadata.jsonl").write_text(text)
        status, _, err = score(capsys, "images")
        assert (status, "Traceback" in err) == (2, False)
        assert "images/00000/metadata.jsonl' is " in err
        assert "no JSON object as GenEval's is; correct it." in err

    def test_films_and_documents_are_no_kinds_of_images(self):
        assert not {".mpg", ".pdf", ".eps", ".h5"} & suffixes()
        assert {".png", ".jpg", ".jpeg", ".webp", ".bmp"} <= suffixes()

    @pytest.mark.parametrize("which", ["images", "images/00000"])
    def test_genevals_layout(self, here, capsys, which):
        for number, include in enumerate([[{"class": "dog", "count": 1}], [{"class": "cup"}, {"class": "cat"}]]):
            folder = here / f"images/{number:05d}"
            (folder / "samples").mkdir(parents=True)
            row = {"tag": "x", "include": include, "prompt": f"prompt {number}"}
            (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
            (folder / "grid.png").write_bytes(b"not looked at")
            for index in range(2):
                noise().save(folder / f"samples/{index:04d}.png")
        status, records, _ = score(capsys, which, reward="own_rewards:objects")
        assert status == 0
        found = [(r["prompt"], r["rewards"]["objects"]) for r in records.values()]
        expected = [("prompt 0", 1.0), ("prompt 0", 1.0), ("prompt 1", 2.0), ("prompt 1", 2.0)]
        assert found == (expected if which == "images" else expected[:2])


class TestPrompts:
    def test_rewards_of_the_image_alone_want_none(self, here, capsys):
        noise().save(here / "images/a.png")
        for reward in ("jpeg_compressibility", "jpeg_incompressibility"):
            assert score(capsys, "images/a.png", reward=reward)[0] == 0
        status, _, err = score(capsys, "images/a.png", reward="own_rewards:length")
        assert status == 2
        assert "has no prompt" in err
        argv = ["--reward_funcs", "own_rewards:length"]
        assert score(capsys, "images/a.png", *argv)[0] == 2, "one of them reads prompts"

    @pytest.mark.parametrize("kind", ["txt", "jsonl", "geneval"])
    def test_a_byte_order_mark_is_no_part_of_them(self, here, capsys, kind):
        noise().save(here / "images/cat.png")
        if kind == "txt":
            (here / "images/cat.txt").write_bytes(b"\xef\xbb\xbfa cat")
        else:
            row = {"prompt": "a cat"} | ({"file_name": "cat.png"} if kind == "jsonl" else {})
            (here / "images/metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\r\n")
        if kind == "geneval":
            (here / "images/samples").mkdir()
            (here / "images/cat.png").rename(here / "images/samples/cat.png")
        _, records, _ = score(capsys, "images", reward="own_rewards:length")
        assert [record["rewards"]["length"] for record in records.values()] == [5.0]
