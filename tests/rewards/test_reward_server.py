# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import io
import json
import pickle
import socket
import struct
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
import torch
import toy_rewards
from malformed import malformed_requests
from PIL import Image
from server_process import until
from toy_rewards import numbered_image

from trl_progrpo import __version__
from trl_progrpo.cli.main import main
from trl_progrpo.reward_server.batching import Job, RefusedInput, RewardWorker
from trl_progrpo.rewards import image_type


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_with_header(width, height):
    """A file of some bytes that claims to be large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


IMAGE = file_of(numbered_image(7))
FIELDS = {"reward": "toy_rewards:number", "prompts": ["a"]}
# Proxies are for the way out, and a busy machine may take its time.
PATIENT = {"trust_env": False, "timeout": 300}


@pytest.fixture
def post(reward_server):
    """A function that posts to `/score` what is told, or files `images` and fields of the JSON."""

    def post(images=(IMAGE,), content=None, headers=None, **fields):
        headers = {**reward_server.headers, **(headers or {})}
        if content is not None:
            return httpx2.post(f"{reward_server.url}/score", content=content, headers=headers, **PATIENT)
        fields = {"reward": "toy_rewards:number", "prompts": ["a"] * len(images), **fields}
        return httpx2.post(
            f"{reward_server.url}/score",
            data={"request": json.dumps(fields)},
            files=[("images", (f"{i}", image, "image/png")) for i, image in enumerate(images)],
            headers=headers,
            **PATIENT,
        )

    return post


def assert_sentence(response, status, *parts):
    assert response.status_code == status, response.text
    told = response.json()["error"]
    assert "\n" not in told
    assert "Traceback" not in told
    for part in parts:
        assert part in told


class TestScore:
    def test_health(self, reward_server):
        assert reward_server.health() == {
            "ready": True,
            "rewards": [f"toy_rewards:{name}" for name in ("number", "red", "target", "slow", "bad")],
            "queue": 0,
            "max_queue": 32,
            "version": __version__,
        }

    def test_order_sizes_and_formats(self, post):
        images = [
            file_of(numbered_image(1)),
            file_of(numbered_image(2, (5, 9))),
            file_of(numbered_image(300, (5, 9)), "WEBP", lossless=True),
            file_of(numbered_image(4)),
            file_of(numbered_image(5)),
            file_of(numbered_image(70000)),
            file_of(numbered_image(7)),
        ]
        response = post(images, request_id="abc")
        assert response.json() == {"request_id": "abc", "rewards": [1, 2, 300, 4, 5, 70000, 7]}

    def test_columns_preview_and_none(self, post):
        response = post([IMAGE] * 2, columns={"add": [1, 2]}, preview=True, prompts=["a", "none"])
        assert response.json() == {"request_id": "", "rewards": [-8, None]}

    def test_a_tensor_for_those_who_want_one(self, post):
        images = [file_of(numbered_image(200 << 16)), file_of(numbered_image(1 << 16))]
        assert post(images, reward="toy_rewards:red").json()["rewards"] == [200, 1]

    def test_grey(self, post):
        grey = Image.new("L", (8, 8), 9)
        assert post([file_of(grey)]).json()["rewards"] == [(9 << 16) + (9 << 8) + 9]

    def test_requests_are_scored_together(self, post, reward_server, gate):
        with ThreadPoolExecutor(6) as pool:
            try:
                first = pool.submit(post, reward="toy_rewards:slow")
                reward_server.wait_for_queue(1)
                rest = [pool.submit(post, reward="toy_rewards:slow") for _ in range(5)]
                reward_server.wait_for_queue(6)
            finally:
                gate.touch()
            sizes = [future.result().json()["rewards"] for future in (first, *rest)]
        gate.unlink()
        # One is being scored while five come; then as many as a batch holds, then the rest.
        assert sizes[0] == [1]
        assert sorted(sizes[1:]) == [[1], [4], [4], [4], [4]]

    def test_a_full_queue_is_429(self, post, reward_server, gate):
        with ThreadPoolExecutor(1) as pool:
            try:
                waiting = pool.submit(post, [IMAGE] * 31, reward="toy_rewards:slow")
                reward_server.wait_for_queue(31)
                response = post([IMAGE] * 2)
                assert_sentence(response, 429, "31 images are waiting")
                assert 1 <= int(response.headers["Retry-After"]) <= 60
                # Another reward is not held up by it, as long as there are places.
                assert post([IMAGE]).json()["rewards"] == [7]
            finally:
                gate.touch()
            assert waiting.result().status_code == 200
        gate.unlink()
        reward_server.wait_for_queue(0)

    def test_a_client_that_hangs_up_frees_its_places(self, reward_server, gate):
        body = multipart({"reward": "toy_rewards:slow", "prompts": ["a"]}, [IMAGE])
        with connected(reward_server) as stranger:
            stranger.sendall(head(reward_server, f"Content-Length: {len(body)}") + body)
            reward_server.wait_for_queue(1)
        try:
            reward_server.wait_for_queue(0)
        finally:
            gate.touch()
        until(lambda: reward_server.health()["ready"])
        gate.unlink()


def multipart(fields, images, boundary=b"x"):
    parts = [(b'name="request"', json.dumps(fields).encode())]
    parts += [(b'name="images"; filename="i"', image) for image in images]
    body = b"".join(b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (boundary, *part) for part in parts)
    return body + b"--%b--\r\n" % boundary


def connected(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=300)


def head(server, *lines):
    token = server.headers["Authorization"]
    lines = ("POST /score HTTP/1.1", "Host: x", f"Authorization: {token}", *lines)
    return "\r\n".join([*lines, "Content-Type: multipart/form-data; boundary=x", "", ""]).encode()


class TestTokens:
    @pytest.mark.parametrize(
        "header",
        [None, "", "Bearer", "Bearer wrong", "Bearer s3cret-t0ke", "Bearer s3cret-t0kenx", "Basic s3cret-t0ken",
         "s3cret-t0ken", b"Bearer s3cret-t0ken\xff", "Bearer  s3cret-t0ken"],
    )  # fmt: skip
    def test_401(self, reward_server, header):
        headers = {} if header is None else {"Authorization": header}
        for call in (
            lambda: httpx2.get(f"{reward_server.url}/health", headers=headers, **PATIENT),
            lambda: httpx2.post(f"{reward_server.url}/score", content=b"x" * 1000, headers=headers, **PATIENT),
        ):
            response = call()
            assert_sentence(response, 401, "bearer token")
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert "s3cret" not in response.text

    def test_the_scheme_has_no_case(self, reward_server):
        headers = {"Authorization": "bearer s3cret-t0ken"}
        assert httpx2.get(f"{reward_server.url}/health", headers=headers, **PATIENT).status_code == 200


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "status", "parts"),
        [
            ({"reward": "toy_rewards:nmber"}, 404, ["'toy_rewards:nmber'", "did you mean 'toy_rewards:number'?"]),
            ({"reward": "../../etc/passwd"}, 404, ["no reward"]),
            ({"reward": "toy_rewards:target"}, 422, ["needs the column 'target'"]),
            ({"reward": 3}, 422, ["'reward'", "valid string"]),
            ({"prompts": "a"}, 422, ["'prompts'", "valid array"]),
            ({"prompts": [1]}, 422, ["'prompts.0'", "valid string"]),
            ({"prompts": []}, 422, ["'prompts'", "at least 1"]),
            ({"prompts": ["a", "b"]}, 422, ["2 prompts came with 1 images"]),
            ({"preview": "yes"}, 422, ["'preview'", "valid boolean"]),
            ({"columns": [1]}, 422, ["'columns'"]),
            ({"columns": {"add": 1}}, 422, ["'columns.add'", "valid array"]),
            ({"columns": {"add": [1, 2]}}, 422, ["'add' has 2 values for 1 images"]),
            ({"columns": {"images": [1]}}, 422, ["may not be called 'images'"]),
            ({"request_id": "x" * 101}, 422, ["'request_id'", "100"]),
            ({"image": 1}, 422, ["'image'", "not permitted"]),
        ],
    )
    def test_json(self, post, fields, status, parts):
        assert_sentence(post(**fields), status, *parts)

    @pytest.mark.parametrize(
        ("image", "parts"),
        [
            (b"", ["image 1 is no PNG or WebP"]),
            (IMAGE[:60], ["damaged"]),
            (file_of(numbered_image(1), "WEBP")[:60], ["damaged"]),
            (pickle.dumps(IMAGE), ["image 1 is no PNG or WebP"]),
            (file_of(numbered_image(1), "JPEG"), ["no PNG or WebP"]),
            (file_of(numbered_image(1), "GIF"), ["no PNG or WebP"]),
            (file_of(Image.new("RGBA", (8, 8))), ["mode RGBA", "without alpha"]),
            (file_of(Image.new("RGBA", (8, 8)), "WEBP"), ["mode RGBA", "without alpha"]),
            (file_of(Image.new("LA", (8, 8))), ["mode LA"]),
            (file_of(Image.new("P", (8, 8))), ["mode P"]),
            (file_of(Image.new("RGB", (8, 8)), transparency=(0, 0, 0)), ["RGB with transparency"]),
            (file_of(Image.fromarray(np.zeros((8, 8), np.uint16))), ["8-bit"]),
            (file_of(numbered_image(1), "WEBP", save_all=True, append_images=[numbered_image(2)]), ["animated"]),
            (file_of(Image.new("RGB", (257, 256))), ["257 x 256", "65536 pixels"]),
            (png_with_header(100_000, 100_000), ["65536 pixels"]),
            (png_with_header(9_000, 9_000), ["9000 x 9000"]),
        ],
    )  # fmt: skip
    def test_images(self, post, image, parts):
        assert_sentence(post([IMAGE, image]), 422, *parts)

    @pytest.mark.parametrize(
        ("content", "kind", "status", "part"),
        [
            (b"{}", "application/json", 415, "multipart/form-data"),
            (b"request=1", "application/x-www-form-urlencoded", 415, "multipart/form-data"),
            (pickle.dumps({}), "application/octet-stream", 415, "multipart/form-data"),
            (b"--x--", "multipart/form-data", 400, "boundary"),
            (b"garbage", "multipart/form-data; boundary=x", 400, "malformed"),
            (b"--x--\r\n", "multipart/form-data; boundary=x", 400, "`request`"),
            (multipart(FIELDS, [IMAGE])[:-60], "multipart/form-data; boundary=x", 422, "1 prompts came with 0 images"),
            (multipart({}, [IMAGE]), "multipart/form-data; boundary=x; charset=punycode", 400, "malformed"),
            (multipart({}, [IMAGE]), "multipart/form-data; boundary=" + "y" * 300, 400, "malformed"),
        ],
    )
    def test_bodies(self, post, content, kind, status, part):
        assert_sentence(post(content=content, headers={"Content-Type": kind}), status, part)

    def test_names_of_files_are_not_used(self, post):
        body = multipart(FIELDS, [IMAGE])
        body = body.replace(b'filename="i"', b'filename="../../../escaped.png"')
        response = post(content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert response.json()["rewards"] == [7]

    def test_declared_size(self, post):
        response = post([IMAGE], prompts=["x" * 2**20])
        assert_sentence(response, 413, "1 MiB")

    def test_size_is_counted_while_it_arrives(self, reward_server):
        """Chunked, so that nothing is declared; answered long before the end, which never comes."""
        with connected(reward_server) as stranger:
            stranger.sendall(head(reward_server, "Transfer-Encoding: chunked"))
            for part in (multipart(FIELDS, [IMAGE])[:-10], *[bytes(2**16)] * 16):
                stranger.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            assert b" 413 " in stranger.recv(100).splitlines()[0]

    def test_number_of_images(self, post):
        assert_sentence(post([IMAGE] * 33), 413, "at most 32 images")

    @pytest.mark.parametrize(
        ("method", "path", "status"), [("GET", "/score", 405), ("GET", "/x", 404), ("GET", "/docs", 404)]
    )
    def test_other_paths(self, reward_server, method, path, status):
        response = httpx2.request(method, reward_server.url + path, headers=reward_server.headers, **PATIENT)
        assert_sentence(response, status)

    def test_rewards_that_fail(self, post):
        def ask(prompt):
            return post(reward="toy_rewards:bad", prompts=[prompt] * 2, images=[IMAGE] * 2)

        assert_sentence(ask("refuse"), 422, "refuses its input: the prompt is not a sentence (toy_rewards.py, line ")
        assert_sentence(ask("short"), 500, "returned 1 values for 2 images")
        assert_sentence(ask("nan"), 500, "returned nan")
        assert_sentence(ask("crash"), 500, "RuntimeError: out of memory", "The server's log")
        assert_sentence(ask("exit"), 500, "SystemExit: 1")
        assert ask("fine").json()["rewards"] == [1, 1]


class TestMalformed:
    @pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
    def test_no_5xx_and_no_growth(self, reward_server, count):
        statuses, memory = {}, None
        with httpx2.Client(base_url=reward_server.url, **PATIENT) as client:
            for index, (kind, headers, body) in enumerate(malformed_requests(count, seed=0, valid=IMAGE)):
                if index == count // 4:
                    memory = reward_server.memory()
                response = client.post("/score", content=body, headers={**reward_server.headers, **headers})
                statuses.setdefault(kind, set()).add(response.status_code)
                # A flipped bit may hit a pixel, and then it is another image.
                expected = (200, 400, 404, 413, 415, 422) if kind == "flipped" else (400, 404, 413, 415, 422)
                assert response.status_code in expected, (kind, response.status_code, response.text[:300])
                assert response.status_code == 200 or response.json()["error"]
        assert len(statuses) > 10
        assert reward_server.health()["queue"] == 0
        if memory is not None:
            assert reward_server.memory() - memory < 8 * 2**20

    def test_connections_that_break_off(self, reward_server):
        body = multipart(FIELDS, [IMAGE])
        for cut in range(0, len(body), 40):
            with connected(reward_server) as stranger:
                stranger.sendall(head(reward_server, f"Content-Length: {len(body)}") + body[:cut])
        for garbage in (b"\x80\x04K\x01.", b"\x80\x04K\x01.\r\n\r\n", b"\r\n" * 50, b"POST /score\r\n\r\n"):
            with connected(reward_server) as stranger:
                stranger.sendall(garbage)
                stranger.shutdown(socket.SHUT_WR)
                answer = stranger.recv(1000)
                assert not answer or b" 400 " in answer.splitlines()[0]
        assert reward_server.health()["queue"] == 0


class TestWorker:
    @pytest.fixture
    def work(self):
        """A function that scores jobs in one go: all are queued before the thread starts."""

        def work(function, jobs, max_batch_size=8):
            worker = RewardWorker("toy", function, max_batch_size)
            for job in jobs:
                worker.submit(job)
            worker.start()
            worker.close(timeout=None)
            return jobs

        return work

    def job(self, numbers, preview=False, size=(8, 8), prompt="a", **columns):
        images = [np.asarray(numbered_image(number, size)) for number in numbers]
        return Job([prompt] * len(numbers), images, columns, preview)

    def test_batches_hold_what_belongs_together(self, work):
        calls = []

        def spy(prompts, images, preview, **columns):
            calls.append((len(images), preview, images[0].size, sorted(columns)))
            return toy_rewards.number(prompts, images, preview, **columns)

        jobs = work(
            spy,
            [
                self.job([1, 2]),
                self.job([3], preview=True),
                self.job([4], size=(4, 8)),
                self.job([5], add=[10]),
                self.job([6]),
                self.job([7, 8, 9], preview=True),
            ],
            max_batch_size=3,
        )
        assert [job.scores.result() for job in jobs] == [[1, 2], [-3], [4], [15], [6], [-7, -8, -9]]
        assert calls == [
            (3, False, (8, 8), []),
            (3, True, (8, 8), []),
            (1, False, (4, 8), []),
            (1, False, (8, 8), ["add"]),
            (1, True, (8, 8), []),
        ]

    def test_a_request_larger_than_a_batch(self, work):
        (job,) = work(toy_rewards.number, [self.job(range(10))], max_batch_size=4)
        assert job.scores.result() == list(range(10))

    @pytest.mark.parametrize(("prompt", "refused"), [("refuse", True), ("crash", False), ("short", False)])
    def test_one_request_does_not_spoil_the_others(self, work, prompt, refused):
        jobs = work(toy_rewards.bad, [self.job([1, 2], prompt=prompt), self.job([1]), self.job([1, 2, 3])])
        assert isinstance(jobs[0].scores.exception(), RefusedInput) is refused
        assert [job.scores.result() for job in jobs[1:]] == [[1], [1, 1, 1]]

    def test_coroutines(self, work):
        async def number(prompts, images, preview, **columns):
            if prompts[0] == "refuse":
                raise ValueError("no")
            return toy_rewards.number(prompts, images, preview, **columns)

        jobs = work(number, [self.job([1, 2]), self.job([3], preview=True, prompt="refuse")])
        assert jobs[0].scores.result() == [1, 2]
        with pytest.raises(RefusedInput, match="no"):
            jobs[1].scores.result()

    def test_a_tensor_is_laid_out_as_in_training(self, work):
        @image_type("pt")
        def flat(prompts, images):
            return images.view(len(images), -1).mean(1)

        (job,) = work(flat, [self.job([1, 2])])
        assert len(job.scores.result()) == 2

    def test_a_network_is_given_what_its_forward_takes(self, work):
        class Scorer(torch.nn.Module):
            def forward(self, prompts, images):
                return [1.0] * len(images)

        (job,) = work(Scorer(), [self.job([1, 2], add=[1, 2])])
        assert job.scores.result() == [1, 1]

    def test_what_a_function_refuses_is_logged_once_with_its_place(self, work, caplog):
        def buggy(prompts, images):
            return np.zeros((2, 3)) + np.zeros(5)

        jobs = work(buggy, [self.job([1]), self.job([2], size=(4, 4))])
        for job in jobs:
            with pytest.raises(RefusedInput, match=r"could not be broadcast .* \(test_reward_server.py, line \d+\)"):
                job.scores.result()
        assert len(caplog.records) == 1
        assert caplog.records[0].levelname == "WARNING"
        assert caplog.records[0].exc_info is not None

    def test_what_nobody_waits_for_is_not_scored(self, work):
        calls = []

        def spy(prompts, images):
            calls.append(len(images))
            return [0.0] * len(images)

        gone, job = self.job([1, 2]), self.job([3])
        gone.scores.cancel()
        work(spy, [gone, job])
        assert calls == [1]

    def test_the_runner_tells_its_own_sentences(self, work):
        (job,) = work(toy_rewards.bad, [self.job([1, 2], prompt="nan")])
        with pytest.raises(ValueError, match="`bad` returned nan for image 0"):
            job.scores.result()

    def test_one_thread_calls_a_reward(self, work):
        threads = set()

        def spy(prompts, images):
            threads.add(threading.current_thread().name)
            return [0.0] * len(images)

        work(spy, [self.job([1]), self.job([2], size=(4, 4))])
        assert threads == {"reward-toy"}


class TestCommand:
    @pytest.mark.parametrize(
        ("argv", "parts"),
        [
            ([], ["--reward"]),
            (["--reward", "shape"], ["unknown reward function 'shape'", "did you mean 'shapes'?"]),
            (["--reward", "shapes", "--port", "99999"], ["`--port` is 99999"]),
            (["--reward", "shapes", "--max_queue", "0"], ["`--max_queue` is 0"]),
            (["--reward", "shapes", "--max_body_mb", "nan"], ["`--max_body_mb` is nan"]),
            (["--reward", "shapes", "--host", "0.0.0.0"], ["`--host` 0.0.0.0", "no token", "--token_file"]),
            (["--reward", "shapes", "--host", "no.such.host.invalid"], ["`--host` no.such.host.invalid"]),
            (["--reward", "shapes", "--token_file", "missing"], ["`--token_file` 'missing' cannot be read"]),
            (["--reward", "shapes", "--max_queu", "0"], ["did you mean --max_queue?"]),
        ],
    )
    def test_mistakes(self, argv, parts, capsys, monkeypatch):
        monkeypatch.delenv("TRL_PROGRPO_REWARD_TOKEN", raising=False)
        assert main(["reward-server", *(["--port", "0"] if "--port" not in argv else []), *argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        for part in parts:
            assert part in err

    def test_a_port_that_is_taken(self, reward_server, capsys):
        assert main(["reward-server", "--reward", "shapes", "--port", str(reward_server.port)]) == 2
        assert f"`--port` {reward_server.port}" in capsys.readouterr().err

    @pytest.mark.parametrize("text", ["", "two words", "é"])
    def test_token_files(self, text, tmp_path, capsys):
        file = tmp_path / "token"
        file.write_text(text)
        assert main(["reward-server", "--reward", "shapes", "--port", "0", "--token_file", str(file)]) == 2
        err = capsys.readouterr().err
        assert "token" in err
        assert not text or text not in err

    def test_without_the_extra(self, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "fastapi", None)
        assert main(["reward-server", "--reward", "shapes"]) == 2
        assert 'fastapi not installed; run pip install "trl_progrpo[server]".' in capsys.readouterr().err

    def test_weights_are_loaded_before_it_listens(self, monkeypatch, capsys):
        def load():
            raise ValueError("the weights are missing.")

        monkeypatch.setattr(toy_rewards.number, "load", load, raising=False)
        assert main(["reward-server", "--reward", "toy_rewards:number", "--port", "0"]) == 2
        assert capsys.readouterr().err == "trl-progrpo reward-server: error: the weights are missing.\n"
