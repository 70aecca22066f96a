# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo score` on folders as people have them: damaged, sideways, enormous, of many kinds, in GenEval's layout."""

import json

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
        assert f"'images/{name}' cannot be read: " in err
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
        assert "gone.png' cannot be read: line 2 of metadata.jsonl: No such file or directory." in err

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
        assert "none of the other 1 either" in err


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
    KINDS = ("a.png", "b.gif", "c.tiff", "d.jfif", "e.JPG", "f.bmp", "g.ppm", "h.webp", "i.tif")

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
        assert "left out (film.mp4)" in said

    def test_images_that_a_list_leaves_out_are_said(self, here):
        for name in ("a.png", "b.png", "c.JPG"):
            noise().save(here / "images" / name)
        (here / "images/metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "prompt": "x"}))
        told = r"2 unlisted images left out \(b.png, c.JPG\); give each a row in metadata.jsonl"
        with pytest.warns(UserWarning, match=told):
            files = images_of("images")
        assert [file.path.name for file in files] == ["a.png"]

    def test_rows_may_name_images_in_the_home_folder(self, here, monkeypatch):
        monkeypatch.setenv("HOME", str(here))
        noise().save(here / "images/a.png")
        (here / "rows.jsonl").write_text(json.dumps({"image": "~/images/a.png", "prompt": "x"}))
        assert images_of("rows.jsonl")[0].path == here / "images/a.png"

    @pytest.mark.parametrize("text", ["[1]", '"dog"', "null"])
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
