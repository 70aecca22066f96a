# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import json
import logging
import os
import re
import socket
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from server_process import ServerProcess, until
from toy_rewards import number, numbered_image

from trl_progrpo.cli.main import main
from trl_progrpo.rewards import RewardRunner, remote, remote_client, resolve_reward, reward_name
from trl_progrpo.rewards.remote import RemoteReward, encode_image
from trl_progrpo.rewards.remote_client import RemoteRewardError, RemoteRewardTimeout
from trl_progrpo.testing import check_reward_func


NAME = "toy_rewards:number"
TOKEN = "s3cret-t0ken"


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("TRL_PROGRPO_REWARD_TOKEN", TOKEN)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(remote_client, "_FIRST_PAUSE", 0.02)


@pytest.fixture
def no_server():
    """The address of a port that nobody listens on, kept from others meanwhile; a server may still be given it."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


class Script:
    """
    A server that answers `/score` as its script says: a number, a status, a dictionary, or an event to wait for. More than
    `largest` images are too many for it.
    """

    def __init__(self, *script, rewards=("toy",), port=0, largest=None):
        self.largest = largest
        self.script, self.rewards, self.requests, self.connections = list(script), list(rewards), [], set()
        script_server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.answer(200, {"ready": True, "rewards": script_server.rewards})

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = json.loads(re.search(rb"\r\n\r\n(\{.*?\})\r\n--", body, re.DOTALL)[1])
                script_server.requests.append(request)
                script_server.connections.add(self.client_address)
                step = script_server.script.pop(0) if script_server.script else 1.0
                if isinstance(step, threading.Event):
                    step.wait(300)
                    self.close_connection = True
                elif step == "break":
                    self.close_connection = True
                elif isinstance(step, tuple):
                    self.answer(*step)
                elif script_server.largest is not None and len(request["prompts"]) > script_server.largest:
                    self.answer(413, {"error": "too many."})
                else:
                    scores = [step] * len(request["prompts"])
                    self.answer(200, {"request_id": request["request_id"], "rewards": scores})

            def answer(self, status, content, headers=()):
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def ask(reward, count=1, **columns):
    return reward(["a"] * count, [numbered_image(i) for i in range(count)], **columns)


class TestAgainstAServer:
    def test_from_a_name(self, reward_server, token):
        reward = resolve_reward(f"remote:{reward_server.url}/{NAME}")
        assert reward_name(reward) == "number"
        assert reward.image_type == "pil"
        assert repr(reward) == f"RemoteReward(['{reward_server.url}'], '{NAME}')"
        assert ask(reward, 80) == list(range(80))

    @pytest.mark.parametrize("image_format", ["png", "webp"])
    def test_as_if_it_were_here(self, reward_server, token, image_format):
        """Bit by bit, behind a runner on either side; 20 images in chunks of 3, over servers that batch by 4."""
        remote = RemoteReward(reward_server.url, NAME, chunk_size=3, image_format=image_format)
        prompts = ["none" if i % 7 == 3 else "a" for i in range(20)]
        images = torch.rand(20, 3, 16, 24, generator=torch.Generator().manual_seed(0))
        columns = {"add": [i / 3 for i in range(20)], "other": [{"x": [i]} for i in range(20)]}
        for preview in (False, True):
            here = RewardRunner(number)(prompts, images, columns, preview=preview)
            there = RewardRunner(remote)(prompts, images, columns, preview=preview)
            assert torch.equal(here.nan_to_num(-0.5), there.nan_to_num(-0.5))
            assert torch.isnan(there).sum() == 3

    def test_columns_of_all_kinds(self, reward_server, token):
        reward = RemoteReward(reward_server.url, NAME)
        assert ask(reward, 2, add=np.array([1, 2])) == [1, 3]
        assert ask(reward, 2, add=[np.float32(1), torch.tensor(2)]) == [1, 3]
        with pytest.warns(UserWarning, match="column 'picture' is not sent"):
            assert ask(reward, 1, add=[5], picture=[numbered_image(1)]) == [5]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ask(reward, 1, add=[5], picture=[numbered_image(1)]) == [5]

    def test_contract(self, reward_server, token):
        report = check_reward_func(f"remote:{reward_server.url}/{NAME}")
        assert (report.name, report.batch_difference) == ("number", 0)

    def test_no_images(self, reward_server, token):
        assert RemoteReward(reward_server.url, NAME)([], []) == []

    @pytest.mark.parametrize(("name", "expected"), [("jpeg_compressibility", False), ("shapes", True), ("toy", True)])
    def test_whether_prompts_are_read_is_known_of_built_in_rewards(self, monkeypatch, name, expected):
        monkeypatch.setattr(remote_client.RewardServers, "check", lambda self, reward: None)
        assert RemoteReward("http://nowhere:1", name).reads_prompts is expected

    @pytest.mark.parametrize(
        ("prompt", "kind", "part"),
        [
            ("refuse", ValueError, "refuses its input: the prompt is not a sentence."),
            ("crash", RemoteRewardError, "RuntimeError: out of memory"),
        ],
    )
    def test_a_reward_that_fails_there(self, reward_server, token, prompt, kind, part):
        reward = RemoteReward(reward_server.url, "toy_rewards:bad")
        with pytest.raises(kind, match=part) as info:
            reward([prompt], [numbered_image(1)])
        assert reward_server.url in str(info.value)

    def test_an_image_that_is_too_large(self, reward_server, token):
        reward = RemoteReward(reward_server.url, NAME)
        with pytest.raises(ValueError, match="300 x 300; at most 65536 pixels"):
            reward(["a"], [Image.new("RGB", (300, 300))])

    def test_requests_that_are_too_large_are_halved(self, reward_server, token):
        """Noise of 256 x 256 pixels is 200 kB, and the server takes 1 MiB."""
        reward = RemoteReward(reward_server.url, NAME, chunk_size=100)
        assert ask(reward, 40) == list(range(40))  # more images than places
        images = [numbered_image(i, (256, 256)) for i in range(12)]
        assert reward(["a"] * 12, images) == list(range(12))

    def test_many_threads_and_a_short_queue(self, reward_server, token):
        """32 places for 96 images at a time: many are sent away and come again."""
        reward = RemoteReward(reward_server.url, NAME, chunk_size=4)
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda _: ask(reward, 16), range(6))) == [list(range(16))] * 6


class TestToken:
    @pytest.mark.parametrize("value", [None, "", "wrong-t0ken"])
    def test_a_wrong_token_is_a_sentence(self, reward_server, monkeypatch, value, caplog):
        monkeypatch.delenv("TRL_PROGRPO_REWARD_TOKEN", raising=False)
        if value is not None:
            monkeypatch.setenv("TRL_PROGRPO_REWARD_TOKEN", value)
        with pytest.raises(ValueError, match="refuses the token; set TRL_PROGRPO_REWARD_TOKEN") as info:
            resolve_reward(f"remote:{reward_server.url}/{NAME}")
        assert not value or value not in str(info.value)

    def test_it_is_never_shown(self, monkeypatch, caplog):
        caplog.set_level(logging.DEBUG)
        monkeypatch.setenv("OTHER_TOKEN", TOKEN)
        echo = {"error": f"what is {TOKEN}?"}
        with Script((422, echo), (500, echo)) as server:
            reward = RemoteReward(server.url, "toy", token_env="OTHER_TOKEN")
            for kind in (ValueError, RemoteRewardError):
                with pytest.raises(kind, match=r"what is \*\*\*\?") as info:
                    ask(reward)
                assert TOKEN not in repr(info.value)
            assert TOKEN not in f"{reward!r} {vars(reward)} {vars(reward._servers)}"
        assert TOKEN not in caplog.text

    @pytest.mark.parametrize("value", ["two words", "line\nbreak", "é"])
    def test_one_that_is_no_header(self, monkeypatch, value, no_server):
        monkeypatch.setenv("TRL_PROGRPO_REWARD_TOKEN", value)
        with pytest.raises(ValueError, match="the token in the environment variable") as info:
            RemoteReward(no_server, "toy")
        assert value not in str(info.value)

    def test_unencrypted_to_another_machine(self, token):
        with pytest.warns(UserWarning, match="unencrypted"), pytest.raises(ValueError, match="can be reached"):
            RemoteReward("http://no.such.host.invalid:1", "toy")


class TestStart:
    def test_nobody_there(self, no_server):
        with pytest.raises(ValueError, match="no reward server for 'toy' can be reached") as info:
            RewardRunner([f"remote:{no_server}/toy"])
        assert no_server in str(info.value)
        assert "trl-progrpo reward-server --reward toy" in str(info.value)

    def test_before_the_model_is_loaded(self, no_server, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr(
            "trl_progrpo.progrpo_trainer.load_pipeline", lambda *a, **k: pytest.fail("weights were read")
        )
        argv = ["--model_name_or_path", "shapes", "--dataset_name", "shapes", "--output_dir", str(tmp_path)]
        argv += ["--num_generations", "2", "--per_device_train_batch_size", "2", "--use_cpu", "--report_to", "none"]
        assert main(["train", *argv, "--reward_funcs", f"remote:{no_server}/toy"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert "no reward server for 'toy' can be reached" in err

    def test_some_there(self, no_server):
        with Script() as server:
            with pytest.warns(UserWarning, match="cannot be reached and are tried again later") as record:
                reward = resolve_reward(f"remote:{no_server},{server.url}/toy")
            assert no_server in str(record[0].message)
            assert ask(reward, 40) == [1.0] * 40

    def test_an_unknown_reward(self):
        with Script(rewards=["pickscore", "ocr"]) as server:
            with pytest.raises(ValueError, match="did you mean 'pickscore'\\? it serves: pickscore, ocr"):
                RemoteReward(server.url, "pikscore")

    @pytest.mark.parametrize(
        ("status", "health"),
        [(200, ["x"]), (200, {"status": "ok"}), (200, {"rewards": 3}), (200, b"<html>"), (302, {})],
    )
    def test_another_kind_of_server(self, status, health):
        with Script() as server:
            server.server.RequestHandlerClass.do_GET = lambda self: self.answer(status, health)
            with pytest.raises(ValueError, match=r"no reward server.*(check the address|start one)"):
                RemoteReward(server.url, "toy")

    @pytest.mark.parametrize("host", ["höst_☃", "a..b"])
    def test_hosts_that_are_none(self, host):
        with pytest.raises(ValueError, match="http://"):
            RemoteReward(f"http://{host}:8000", "toy")

    def test_the_certificates_of_the_environment_are_believed(self, monkeypatch, tmp_path):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
        with pytest.raises(FileNotFoundError):
            RemoteReward("https://127.0.0.1:1", "toy")

    @pytest.mark.parametrize(
        "name",
        ["remote:", "remote:toy", "remote:http://a:1", "remote:http://a:1/", "remote:http:///toy", "remote:ftp://a/toy",
         "remote:http://a:x/toy", "remote:http://a:99999/toy", "remote:http://a:1,b:2/toy", "remote:http://a:1,/toy",
         "remote:http://u:s3cret@a:1/toy", "remote:http://u:s3cret@a:1", "remote:http://[::1/toy"],
    )  # fmt: skip
    def test_malformed_names(self, name):
        with pytest.raises(ValueError, match=r"http://host:(8000/pickscore|port)") as info:
            resolve_reward(name)
        assert "s3cret" not in str(info.value)

    @pytest.mark.parametrize(
        ("kwargs", "part"),
        [
            ({"timeout": 0}, "`timeout` is 0"),
            ({"retries": -1}, "`retries` is -1"),
            ({"chunk_size": 0}, "`chunk_size` is 0"),
            ({"max_workers": 0}, "`max_workers` is 0"),
            ({"image_format": "jpeg"}, "`image_format` is 'jpeg'"),
            ({"urls": []}, "`urls` is empty"),
        ],
    )
    def test_arguments(self, kwargs, part, no_server):
        with pytest.raises(ValueError, match=part):
            RemoteReward(**{"urls": no_server, "reward": "toy", **kwargs})


class TestInput:
    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "CMYK", "F", "1"])
    def test_modes_that_are_not_sent(self, mode):
        with pytest.raises(ValueError, match=f"image 3 is '{mode}'.*convert"):
            encode_image(Image.new(mode, (4, 4)), "png", 3)

    def test_no_image(self):
        with pytest.raises(ValueError, match="image 0 is 'Tensor'"):
            encode_image(torch.zeros(3, 4, 4), "png", 0)

    def test_lengths(self):
        with Script() as server, pytest.raises(ValueError, match="2 prompts came with 1 images"):
            RemoteReward(server.url, "toy")(["a", "b"], [numbered_image(1)])


class TestRetries:
    def test_what_passes_is_tried_again(self):
        script = [(502, b"bad gateway"), "break", (503, {}), (429, {}, {"Retry-After": "0.01"}), (408, {}), 0.5]
        with Script(*script) as server:
            assert ask(RemoteReward(server.url, "toy")) == [0.5]
            # All of them the same question.
            assert len(server.requests) == 6
            assert len({request["request_id"] for request in server.requests}) == 1

    @pytest.mark.parametrize("status", [400, 404, 413, 418, 422, 500, 501, 307])
    def test_what_does_not_pass_is_not(self, status):
        with Script((status, {"error": "because."}, {"Location": "http://127.0.0.1:1/"})) as server:
            with pytest.raises((ValueError, RemoteRewardError), match=r"because\."):
                ask(RemoteReward(server.url, "toy"))
            assert len(server.requests) == 1

    def test_in_the_end_it_is_an_error(self):
        with Script(*[(503, {})] * 9) as server:
            with pytest.raises(
                RemoteRewardError, match=r"'toy' was not computed, after 2 retries \(.*status 503\)"
            ) as info:
                ask(RemoteReward(server.url, "toy", retries=2))
            assert isinstance(info.value, ConnectionError)
            assert len(server.requests) == 3

    def test_a_server_that_is_away_is_told_apart_from_one_whose_reward_fails(self):
        """By its type, on which it depends whether smaller calls are worth a try."""
        with Script((500, {"error": "because."})) as server:
            with pytest.raises(RemoteRewardError) as info:
                ask(RemoteReward(server.url, "toy"))
            assert not isinstance(info.value, (ConnectionError, TimeoutError))

    def test_a_time_out_is_told_apart(self):
        never = threading.Event()
        with Script(never, never) as server:
            reward = RemoteReward(server.url, "toy", timeout=0.3, retries=1)
            with pytest.raises(RemoteRewardTimeout, match="no answer in time") as info:
                ask(reward)
            assert isinstance(info.value, TimeoutError)
            never.set()

    def test_a_full_queue_does_not_use_up_retries(self):
        busy = (429, {}, {"Retry-After": "0.01"})
        with Script(*[busy] * 5, 0.5) as server:
            assert ask(RemoteReward(server.url, "toy", retries=0)) == [0.5]

    def test_but_not_for_ever(self):
        busy = (429, {}, {"Retry-After": "0.1"})
        with Script(*[busy] * 99) as server:
            with pytest.raises(RemoteRewardError, match="its queue is full"):
                ask(RemoteReward(server.url, "toy", retries=0, timeout=0.4))

    @pytest.mark.parametrize(
        "answer",
        [b"<html>", [], {}, {"rewards": [1.0]}, {"rewards": "x"}, {"rewards": [1.0, 2.0]}, {"rewards": ["1"]},
         b'{"rewards": [NaN]}'],
    )  # fmt: skip
    def test_answers_that_are_none(self, answer):
        with Script((200, answer)) as server, pytest.raises(RemoteRewardError, match="reward server"):
            ask(RemoteReward(server.url, "toy", retries=0))

    def test_one_failed_chunk_ends_the_call(self):
        """While another one waits for its server: the call does not wait for that."""
        never = threading.Event()
        with Script(never, (422, {"error": "no."})) as server:
            with pytest.raises(ValueError, match=r"no\."):
                ask(RemoteReward(server.url, "toy", chunk_size=1, max_workers=2), 8)
            waiting = [thread for thread in threading.enumerate() if thread.name == "remote-reward"]
            assert len(waiting) >= 1
            # Nor does the end of the process.
            assert all(thread.daemon for thread in waiting)
            assert len(server.requests) == 2
            never.set()

    def test_a_call_that_is_given_up_asks_nobody_again(self):
        gate = threading.Event()
        with Script(gate, (503, {})) as server:
            runner = RewardRunner(RemoteReward(server.url, "toy", max_workers=1), on_error="skip", timeout=0.2)
            with pytest.warns(UserWarning, match="took longer"):
                assert runner(["a"], torch.zeros(1, 3, 8, 8)).isnan().all()
            gate.set()
            until(lambda: not [t for t in threading.enumerate() if t.name in ("remote-reward", "reward-with-timeout")])
            # None, on a machine that is so busy that it had not been asked by then.
            assert len(server.requests) <= 1

    def test_what_is_too_large_is_halved_for_good(self, monkeypatch):
        encoded = []
        monkeypatch.setattr(
            remote, "encode_image", lambda image, kind, row: encoded.append(row) or encode_image(image, kind, row)
        )
        with Script(largest=3) as server:
            reward = RemoteReward(server.url, "toy", chunk_size=9, max_workers=1)
            assert ask(reward, 20) == [1.0] * 20
            # Each image once, however often it was sent.
            assert sorted(encoded) == list(range(20))
            assert reward.chunk_size == 3
            refused = [len(request["prompts"]) for request in server.requests if len(request["prompts"]) > 3]
            assert refused == [9, 5]
            server.requests.clear()
            assert ask(reward, 7) == [1.0] * 7
            assert [len(request["prompts"]) for request in server.requests] == [3, 3, 1]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_fork_has_connections_of_its_own(self):
        with Script() as server:
            reward = RemoteReward(server.url, "toy", max_workers=1)
            assert ask(reward) == [1.0]
            child = os.fork()
            if child == 0:
                os._exit(0 if ask(reward) == [1.0] else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert ask(reward) == [1.0]
            assert len(server.connections) == 2

    def test_connections_are_kept(self):
        with Script() as server:
            reward = RemoteReward(server.url, "toy", max_workers=1, chunk_size=1)
            ask(reward, 20)
            assert len(server.requests) == 20
            assert len(server.connections) == 1

    def test_servers_share_the_work_and_one_that_fails_rests(self):
        with Script(*[(503, {})] * 99) as broken, Script() as sound, Script() as other:
            reward = RemoteReward([broken.url, sound.url, other.url], "toy", chunk_size=1, max_workers=1)
            assert ask(reward, 30) == [1.0] * 30
            assert len(broken.requests) == 1
            assert min(len(sound.requests), len(other.requests)) >= 10

    def test_the_global_generator_is_left_alone(self):
        import random

        random.seed(0)
        expected = random.Random(0).random()
        with Script((503, {}), 0.5) as server:
            ask(RemoteReward(server.url, "toy"))
        assert random.random() == expected


@pytest.mark.parametrize("count", [160, pytest.param(1_000, marks=pytest.mark.slow)])
def test_a_server_is_killed_and_another_takes_over(reward_server, token, count):
    """`count` requests from 8 clients; every image is scored exactly once from the caller's view, in order."""
    with ServerProcess(["number"], token=TOKEN) as first:
        urls = [first.wait_until_ready().url, reward_server.url]
        done, half = [], threading.Event()

        def client(index):
            reward = RemoteReward(urls, NAME, chunk_size=2)
            for start in range(index, count, 8):
                numbers = list(range(3 * start, 3 * start + 3))
                done.append((numbers, reward(["a"] * 3, [numbered_image(number) for number in numbers])))
                if len(done) >= count // 2:
                    half.set()

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client, index) for index in range(8)]
            assert half.wait(300)
            first.kill()
            for future in clients:
                future.result()
        assert all(numbers == scores for numbers, scores in done)
        assert sorted(number for numbers, _ in done for number in numbers) == list(range(3 * count))
        assert reward_server.health()["queue"] == 0


def test_a_server_that_stops_and_comes_back(tmp_path, monkeypatch, no_server):
    """It answers what it accepted before it ends; who asks while it is away is answered when it is back."""
    monkeypatch.setattr(remote_client, "_LONGEST_PAUSE", 0.5)
    gate, port = tmp_path / "gate", int(no_server.rpartition(":")[2])
    with ServerProcess(["slow"], gate=gate, port=port) as server, ThreadPoolExecutor(3) as pool:
        # However long the first one takes to end.
        slow = RemoteReward(server.wait_until_ready().url, "toy_rewards:slow", retries=10_000)
        accepted = [pool.submit(ask, slow, 3), pool.submit(ask, slow, 2)]
        server.wait_for_queue(5)
        server.ask_to_stop()
        until(lambda: not listens(server.port))
        asked_meanwhile = pool.submit(ask, slow, 5)
        gate.touch()
        assert [len(future.result()) for future in accepted] == [3, 2]
        assert server.process.wait(300) == 0
        with Script(port=port):
            assert asked_meanwhile.result() == [1.0] * 5


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True
