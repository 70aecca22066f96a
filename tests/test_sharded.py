# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Weights that are shared out among processes, and several machines. The slow tests run the documented commands on a CPU."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from transformers.training_args import ParallelMode

from trl_progrpo import ProGRPOConfig
from trl_progrpo.cli.arguments import TrainParser
from trl_progrpo.cli.base import CommandError
from trl_progrpo.cli.launch import accelerate_configs, launch_arguments
from trl_progrpo.cli.train import read_run
from trl_progrpo.sharding import load_optimizer, local_tensors, save_optimizer, whole_state
from trl_progrpo.sharding_checks import DEEPSPEED, FSDP2, check_sharding, sharding_of_checkpoint
from trl_progrpo.tiny import model_path


ROOT = Path(__file__).resolve().parents[1]
OURS = ("ddp", "fsdp2", "multi_node", "zero2", "zero3")

# Two rollouts of four prompts: each is trained on twice, with KL and an average, and the second checkpoint falls into it.
RUN = [
    "--model_name_or_path", "shapes", "--dataset_name", "shapes", "--reward_funcs", "shapes", "--num_generations", "4",
    "--num_expansions", "6", "--prune_steps", "1", "--prune_sizes", "4", "--num_inference_steps", "3", "--max_steps", "3",
    "--steps_per_generation", "2", "--gradient_accumulation_steps", "2", "--num_iterations", "2", "--beta", "0.04",
    "--save_steps", "1", "--learning_rate", "1e-3", "--adam_epsilon", "1e-3", "--gradient_checkpointing", "true",
    "--audit_fraction", "0", "--report_to", "none", "--eval_samples", "4", "--no_plot",
]  # fmt: skip
FULL = ["--use_peft", "false"]
AVERAGED = ["--ema_decay", "0.5"]
# Scale 1, as files hold scaled weights: one of 64 would enlarge what rounding leaves between two runs.
RANK_ONE = ["--lora_r", "1", "--lora_alpha", "1"]
ONE, EACH_OF_TWO = (["--per_device_train_batch_size", size] for size in ("4", "2"))


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def environment(**more):
    # Without the accelerators of the machine: FSDP2 would take them.
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def start(*argv, prefix=(), **more):
    command = [*prefix, sys.executable, "-m", "trl_progrpo.cli", "train", *RUN, *argv]
    return subprocess.Popen(
        command,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(*processes):
    """Standard error of each, after all have ended well."""
    try:
        told = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    for process, text in zip(processes, told):
        assert process.returncode == 0, text[-4000:]
    return told


def run(*argv, **more):
    return finish(start(*argv, **more))[0]


def two(name):
    return ["--accelerate_config", name, "--num_processes", "2", "--main_process_port", free_port(), *EACH_OF_TWO]


def weights_of(folder):
    files = sorted(Path(folder).rglob("*.safetensors"))
    # A rollout and the optimiser are laid out by process.
    return {
        str(file.relative_to(folder)): load_file(file)
        for file in files
        if not file.name.startswith(("rollout_", "optimizer_"))
    }


def furthest(folder, other):
    """The largest difference between any two weights of two runs with the same files."""
    some, others = weights_of(folder), weights_of(other)
    assert some.keys() == others.keys()
    assert some
    for file in some:
        assert some[file].keys() == others[file].keys()
    pairs = [(some[file][name], others[file][name]) for file in some for name in some[file]]
    assert all(a.dtype == b.dtype for a, b in pairs)
    return max((a - b).abs().max().item() for a, b in pairs if a.is_floating_point())


def resumed(folder, out, *argv, **more):
    """`out` after training on from the second checkpoint of `folder`, whose third is gone."""
    shutil.copytree(folder, out)
    shutil.rmtree(out / "checkpoint-3")
    run(*argv, "--resume_from_checkpoint", "last", "--output_dir", str(out), **more)
    return out


class TestConfigs:
    def test_ours_come_before_those_of_trl(self):
        configs = accelerate_configs()
        assert set(OURS) <= set(configs)
        for name in OURS:
            assert Path(configs[name]).parent == ROOT / "trl_progrpo/accelerate_configs"
        assert Path(configs["fsdp1"]).parent.parent.name == "trl"

    def test_wherever_the_packages_lie(self, monkeypatch, tmp_path):
        for package, place in (("trl", "z"), ("trl_progrpo", "a")):
            folder = tmp_path / place / "accelerate_configs"
            folder.mkdir(parents=True)
            (folder / "fsdp2.yaml").write_text(package)
        monkeypatch.setattr(resources, "files", {"trl": tmp_path / "z", "trl_progrpo": tmp_path / "a"}.__getitem__)
        assert Path(accelerate_configs()["fsdp2"]).read_text() == "trl_progrpo"

    def test_examples_are_the_same_files(self):
        for name in OURS:
            assert (ROOT / f"examples/accelerate/{name}.yaml").resolve() == Path(accelerate_configs()[name]).resolve()

    @pytest.mark.parametrize("name", OURS)
    def test_accelerate_takes_every_key(self, name):
        load_config_from_file(accelerate_configs()[name])
        more = ["--main_process_ip", "10.0.0.1", "--machine_rank", "1"] if name == "multi_node" else []
        arguments = launch_arguments(["--accelerate_config", name, *more], ["train"])
        assert arguments.config_file == accelerate_configs()[name]


class TestMachines:
    TWO = ["--num_machines", "2", "--num_processes", "4"]
    HERE = ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"]

    def test_complete(self):
        assert launch_arguments([*self.TWO, *self.HERE], []).num_machines == 2

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ([*TWO, *HERE, "--num_processes", "3"], "`--num_processes` is 3 on 2 machines.*use a multiple of 2"),
            ([*TWO, "--main_process_ip", "10.0.0.1"], "`--machine_rank` is None with 2 machines.*give 0 on the first"),
            ([*TWO, *HERE, "--machine_rank", "2"], "`--machine_rank` is 2 with 2 machines"),
            ([*TWO, "--machine_rank", "0"], "`--main_process_ip` is not given with 2 machines"),
            (["--accelerate_config", "multi_node", "--machine_rank", "1"], "`--main_process_ip` is not given"),
        ],
    )
    def test_what_would_let_them_wait_for_ever(self, flags, message):
        with pytest.raises(CommandError, match=message):
            launch_arguments(flags, [])


def test_a_backend_is_left_to_the_processes_that_are_launched(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    flags = ["--use_cpu", "--num_processes", "2", "--ddp_backend", "gloo", "--output_dir", str(tmp_path)]
    (_, _, args), launcher = read_run([*RUN, *ONE, *flags], TrainParser)
    assert args.ddp_backend is None
    given = launcher.training_script_args
    assert given[given.index("--ddp_backend") + 1] == "gloo"


class Launched(ProGRPOConfig):
    """As in a process that was launched with others."""

    parallel_mode = ParallelMode.DISTRIBUTED


class TestChecks:
    FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}

    @pytest.fixture
    def make_args(self, tmp_path, monkeypatch):
        def make(launcher, sharing=None, **kwargs):
            for name, value in launcher.items():
                monkeypatch.setenv(name, value)
            args = Launched(output_dir=str(tmp_path), use_cpu=True, report_to="none", num_generations=4, **kwargs)
            args.deepspeed_plugin = sharing
            return args

        monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
        return make

    def test_what_is_fine(self, make_args):
        check_sharding(make_args({}, torch_compile=True), torch.optim.SGD([torch.ones(1)]))
        check_sharding(make_args(self.FSDP, ema_decay=0.9, beta=0.1, gradient_checkpointing=True))

    @pytest.mark.parametrize(
        ("launcher", "kwargs", "message"),
        [
            ({"FSDP_VERSION": "1"}, {}, "`fsdp_version` is 1; use 2"),
            ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}, "`fsdp_cpu_ram_efficient_loading` is true.*to false"),
            ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "`fsdp_offload_params` is true.*to false"),
            (
                {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
                {},
                "`fsdp_activation_checkpointing` is true.*`gradient_checkp",
            ),
            ({}, {"torch_compile": True}, "`torch_compile` is True.*FSDP2; set it to False"),
            ({}, {"save_on_each_node": True}, "`save_on_each_node` is True.*set it to False"),
            ({}, {"prune_schedule": "auto", "num_expansions": 8}, "`prune_schedule` is 'auto'.*`trl-progrpo plan`"),
        ],
    )
    def test_what_fsdp_cannot_have(self, make_args, launcher, kwargs, message):
        with pytest.raises(ValueError, match=message):
            check_sharding(make_args({**self.FSDP, **launcher}, **kwargs))

    def test_settings_of_the_training_itself(self, make_args):
        # As transformers reads them: without the prefix.
        args = make_args({})
        args.fsdp, args.fsdp_config = True, {"version": 2}
        check_sharding(args)
        args.fsdp_config = {"version": 2, "cpu_offload": True}
        with pytest.raises(ValueError, match="`fsdp_offload_params` is true"):
            check_sharding(args)

    def test_an_optimiser_of_the_users_own(self, make_args):
        with pytest.raises(ValueError, match=r"`optimizers` holds an optimiser.*choose one by `optim`"):
            check_sharding(make_args(self.FSDP), torch.optim.SGD([torch.ones(1)]))

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"use_cpu": True}, "`use_cpu` is True.*leaves DeepSpeed out"),
            ({"ema_decay": 0.9}, r"`ema_decay` is 0\.9.*or use FSDP2"),
            ({"load_best_model_at_end": True}, "`load_best_model_at_end` is True.*or use FSDP2"),
        ],
    )
    def test_what_deepspeed_cannot_have(self, make_args, kwargs, message):
        args = make_args({}, sharing=object())
        for name, value in {"use_cpu": False, **kwargs}.items():
            setattr(args, name, value)
        with pytest.raises(ValueError, match=message):
            check_sharding(args)


class TestOptimizerFile:
    def train(self, optimizer, parameters, steps):
        for step in range(steps):
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, step + 1.0)
            optimizer.step()

    def make(self):
        parameters = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(()))]
        groups = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:], "lr": 0.5}]
        return parameters, torch.optim.AdamW(groups, lr=0.1)

    def test_goes_on_as_if_never_saved(self, tmp_path):
        parameters, optimizer = self.make()
        self.train(optimizer, parameters, 2)
        save_optimizer(optimizer, str(tmp_path / "optimizer.safetensors"))
        others, other = self.make()
        for parameter, saved in zip(others, parameters):
            parameter.data.copy_(saved)
        load_optimizer(other, str(tmp_path / "optimizer.safetensors"))
        self.train(optimizer, parameters, 2)
        self.train(other, others, 2)
        assert all(torch.equal(a, b) for a, b in zip(parameters, others))
        assert [group["lr"] for group in other.param_groups] == [0.1, 0.5]


def test_unsharded_weights_are_themselves():
    layer = torch.nn.BatchNorm1d(2)
    layer.bias.requires_grad_(False)
    assert whole_state(layer).keys() == layer.state_dict().keys()
    assert list(whole_state(layer, trained_only=True)) == ["weight"]
    assert whole_state(layer, keep=False) == {}
    [same] = local_tensors([layer.weight])
    assert same is layer.weight


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def one_full(base):
    run(*FULL, *AVERAGED, *ONE, "--use_cpu", "--output_dir", str(base / "one_full"))
    return base / "one_full"


@pytest.fixture(scope="module")
def fsdp_full(base):
    run(*FULL, *AVERAGED, *two("fsdp2"), "--use_cpu", "--output_dir", str(base / "fsdp_full"))
    return base / "fsdp_full"


@pytest.fixture(scope="module")
def one_lora(base):
    run(*ONE, *RANK_ONE, "--use_cpu", "--output_dir", str(base / "one_lora"))
    return base / "one_lora"


def refused(*argv):
    """What a run that ends with a mistake of the user's says."""
    process = start(*argv)
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 2, told
    assert "Traceback" not in told
    return told


@pytest.mark.slow
class TestFSDP2:
    def test_equals_one_process(self, one_full, fsdp_full):
        # The average, the weights in training beside it, and both of every checkpoint. What is left is the order of sums.
        assert furthest(one_full, fsdp_full) < 1e-6
        trained = load_file(fsdp_full / "transformer_raw/diffusion_pytorch_model.safetensors")
        before = load_file(Path(model_path(), "transformer/diffusion_pytorch_model.safetensors"))
        assert max((trained[name] - before[name]).abs().max().item() for name in before) > 1e-4

    def test_the_files_are_those_of_one_process(self, one_full, fsdp_full):
        for name in ("model_index.json", "transformer/config.json"):
            some, other = (json.loads((folder / name).read_text()) for folder in (one_full, fsdp_full))
            assert some == other
        pipeline = DiffusionPipeline.from_pretrained(fsdp_full, text_encoder_3=None, tokenizer_3=None)
        assert type(pipeline.transformer).__name__ == "SD3Transformer2DModel"

    def test_every_process_has_a_part_of_the_optimiser(self, one_full, fsdp_full):
        parts = [load_file(fsdp_full / f"checkpoint-2/optimizer_{rank}.safetensors") for rank in (0, 1)]
        held = [sum(tensor.numel() for name, tensor in part.items() if name.startswith("part/")) for part in parts]
        weights = load_file(one_full / "transformer/diffusion_pytorch_model.safetensors")
        trained = sum(tensor.numel() for name, tensor in weights.items() if name != "pos_embed.pos_embed")
        # Two moments of every parameter.
        assert sum(held) == 2 * trained
        assert abs(held[0] - held[1]) < 0.1 * trained
        assert not list(fsdp_full.rglob("pytorch_model_fsdp*"))

    def test_resumed_inside_a_rollout_it_is_the_same_bit_for_bit(self, base, fsdp_full):
        again = resumed(fsdp_full, base / "again", *FULL, *AVERAGED, *two("fsdp2"), "--use_cpu")
        assert furthest(fsdp_full, again) == 0.0
        for rank in (0, 1):
            parts = [load_file(folder / f"checkpoint-3/optimizer_{rank}.safetensors") for folder in (fsdp_full, again)]
            assert all(torch.equal(parts[0][name], parts[1][name]) for name in parts[0])

    def test_its_checkpoint_is_for_it_alone(self, one_full, fsdp_full):
        checkpoint = str(fsdp_full / "checkpoint-2")
        assert sharding_of_checkpoint(checkpoint) == FSDP2
        assert sharding_of_checkpoint(str(one_full / "checkpoint-2")) is None
        out = ["--output_dir", str(fsdp_full), "--resume_from_checkpoint", checkpoint]
        told = refused(*FULL, *AVERAGED, *two("ddp"), "--use_cpu", *out)
        assert "saved with FSDP2, while this run has neither FSDP2 nor DeepSpeed; use the same `--accelerate" in told

    def test_lora_of_rank_one(self, base, one_lora):
        # One process holds no part at all of weights with one row.
        out = base / "fsdp_lora"
        lora = [*RANK_ONE, *two("fsdp2"), "--use_cpu"]
        run(*lora, "--output_dir", str(out))
        assert furthest(one_lora, out) < 5e-6
        first, second = (load_file(out / f"checkpoint-3/optimizer_{rank}.safetensors") for rank in (0, 1))
        assert first.keys() == second.keys()
        assert any(first[name].numel() > second[name].numel() == 0 for name in first)
        pipeline = DiffusionPipeline.from_pretrained(model_path(), text_encoder_3=None, tokenizer_3=None)
        pipeline.load_lora_weights(out)
        assert furthest(out, resumed(out, base / "lora_again", *lora)) == 0.0

    def test_version_1_is_refused_before_weights_are_loaded(self, tmp_path):
        told = refused(*two("fsdp1"), "--use_cpu", "--output_dir", str(tmp_path))
        assert "`fsdp_version` is 1; use 2" in told


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
@pytest.mark.parametrize("name", ["zero2", "zero3"])
class TestDeepSpeed:
    # Without `--use_cpu`, with which accelerate leaves DeepSpeed out.
    CPU = ["--ddp_backend", "gloo"]

    def test_full_fine_tuning(self, base, name):
        one, out = base / "one_plain", base / name
        if not one.exists():
            run(*FULL, *ONE, "--use_cpu", "--output_dir", str(one))
        command = [*FULL, *two(name), *self.CPU]
        run(*command, "--output_dir", str(out), DS_ACCELERATOR="cpu")
        assert furthest(one, out) < 1e-6
        assert sharding_of_checkpoint(str(out / "checkpoint-2")) == DEEPSPEED
        assert furthest(out, resumed(out, base / f"{name}_again", *command, DS_ACCELERATOR="cpu")) == 0.0

    def test_lora(self, base, one_lora, name):
        out = base / f"{name}_lora"
        run(*RANK_ONE, *two(name), *self.CPU, "--output_dir", str(out), DS_ACCELERATOR="cpu")
        assert furthest(one_lora, out) < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2", "ddp"])
def test_checkpoints_are_pushed(tmp_path, name):
    """What is pushed is gathered from all processes, while only one of them knows of uploads."""
    from hub_server import TOKEN, HubServer

    with HubServer() as hub:
        access = {"HF_TOKEN": TOKEN, **hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        push = [
            "--push_to_hub",
            "--hub_model_id",
            "user/sharded",
            "--hub_strategy",
            "all_checkpoints",
            "--hub_always_push",
        ]
        run(*two(name), "--use_cpu", *push, "--output_dir", str(tmp_path / "out"), **access)
        messages = hub.messages("user/sharded")
        assert [f"Training in progress, step {step}, checkpoint" in messages for step in (1, 2, 3)] == [True] * 3
        files = hub.files("user/sharded")
        assert (
            files["pytorch_lora_weights.safetensors"]
            == (tmp_path / "out" / "pytorch_lora_weights.safetensors").read_bytes()
        )


@pytest.fixture
def namespaces():
    """Two machines in all that concerns the network: prefixes of commands, one address in both, and the card's name."""
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "unshare", "nsenter")):
        pytest.skip("network namespaces need root, and the tools of iproute2 and util-linux")
    # `cat` waits for an input that never comes; a namespace is gone with its last process.
    holders = [subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE) for _ in range(2)]
    inside = [["nsenter", "--net", "--target", str(holder.pid)] for holder in holders]
    try:
        wait_for_namespaces(holders)
        first, second = (str(holder.pid) for holder in holders)
        cable = ["link", "add", "card", "netns", first, "type", "veth", "peer", "name", "card", "netns", second]
        if subprocess.run(["ip", *cable], capture_output=True).returncode:
            pytest.skip("no network devices can be made here")
        for prefix, address in zip(inside, ("10.77.0.1/24", "10.77.0.2/24")):
            for setting in (
                ["addr", "add", address, "dev", "card"],
                ["link", "set", "card", "up"],
                ["link", "set", "lo", "up"],
            ):
                subprocess.run([*prefix, "ip", *setting], check=True)
        yield inside, "10.77.0.1", "card"
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def wait_for_namespaces(holders):
    here = os.readlink("/proc/self/ns/net")
    while any(os.readlink(f"/proc/{holder.pid}/ns/net") == here for holder in holders):
        assert all(holder.poll() is None for holder in holders)


@pytest.fixture(params=["loopback", "namespaces"])
def machines(request):
    if request.param == "namespaces":
        return request.getfixturevalue("namespaces")
    return [[], []], "127.0.0.1", "lo"


@pytest.mark.slow
class TestSeveralMachines:
    @pytest.mark.parametrize("name", [None, "fsdp2"])
    def test_two_launchers_are_one_run(self, base, one_full, machines, name):
        prefixes, address, card = machines
        out = base / f"{card}_{name}"
        command = [*FULL, *AVERAGED, *EACH_OF_TWO, "--use_cpu", "--num_machines", "2", "--num_processes", "2"]
        command += ["--main_process_ip", address, "--main_process_port", free_port(), "--output_dir", str(out)]
        command += ["--accelerate_config", name] if name else []
        ranks = [
            start(*command, "--machine_rank", str(rank), prefix=prefix, GLOO_SOCKET_IFNAME=card)
            for rank, prefix in enumerate(prefixes)
        ]
        finish(*ranks)
        assert furthest(one_full, out) < 1e-6
