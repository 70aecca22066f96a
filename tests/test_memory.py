# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Options that trade memory or start-up time and must not change what is trained."""

import io
import itertools
import re

import pytest
import torch
from dying import PROMPTS
from rich.console import Console

from trl_progrpo.activations import Activations, RowBytes
from trl_progrpo.arithmetic import prune_schedule
from trl_progrpo.cli.dry_run import resolve_model, resolve_policy
from trl_progrpo.cli.plan_memory import Loaded, Memory, estimate, format_bytes, look, note, table
from trl_progrpo.cli.script_arguments import ModelArguments
from trl_progrpo.memory import MemoryEstimate, Part, module_bytes, optimizer_state_bytes


def trained(make_trainer, adapter_of, **kwargs):
    trainer = make_trainer(**kwargs)
    trainer.train()
    return trainer, adapter_of(trainer)


def test_gradient_checkpointing_gives_the_same_weights(make_trainer, adapter_of):
    _, plain = trained(make_trainer, adapter_of)
    trainer, checkpointed = trained(make_trainer, adapter_of, gradient_checkpointing=True)
    assert trainer.family.denoiser.is_gradient_checkpointing
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name])


def test_vae_slicing_and_tiling_are_switched_on_and_change_nothing(make_trainer, adapter_of):
    _, plain = trained(make_trainer, adapter_of)
    trainer, sliced = trained(make_trainer, adapter_of, vae_slicing=True, vae_tiling=True)
    assert trainer.pipeline.vae.use_slicing
    assert trainer.pipeline.vae.use_tiling
    for name in plain:
        torch.testing.assert_close(sliced[name], plain[name])


def compiled_like_plain(make_trainer, adapter_of, backend):
    _, plain = trained(make_trainer, adapter_of)
    trainer, compiled = trained(make_trainer, adapter_of, torch_compile=True, torch_compile_backend=backend)
    assert trainer.family.denoiser._compiled_call_impl is not None
    # Adam turns rounding into steps where a gradient is next to nothing.
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-2, atol=2e-3)
    assert trainer.state.log_history[0]["sampling/sampling_logp_difference/max"] < 1e-5


def test_torch_compile_compiles_the_denoiser_for_rollout_and_update(make_trainer, adapter_of):
    compiled_like_plain(make_trainer, adapter_of, "eager")


@pytest.mark.slow
def test_torch_compile_with_inductor(make_trainer, adapter_of):
    compiled_like_plain(make_trainer, adapter_of, "inductor")


def assert_same_rollout(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for a, b in zip(one.prune_records, other.prune_records, strict=True):
        assert torch.equal(a.kept, b.kept)


def test_offloaded_rollouts_change_nothing(make_trainer, adapter_of):
    kwargs = {"guidance_scale": 2.0, "rollout_waves": 2, "num_iterations": 2}
    plain, expected = trained(make_trainer, adapter_of, **kwargs)
    trainer, offloaded = trained(make_trainer, adapter_of, offload_rollout=True, **kwargs)
    assert_same_rollout(trainer.last_rollout, plain.last_rollout)
    for name in expected:
        assert torch.equal(offloaded[name], expected[name]), name


def test_an_offloaded_rollout_is_resumed(make_trainer, adapter_of):
    kwargs = {
        "steps_per_generation": 4,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 3,
        "offload_rollout": True,
    }
    trainer, expected = trained(make_trainer, adapter_of, **kwargs)
    again = make_trainer(**kwargs)
    again.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-3")
    for name, weights in adapter_of(again).items():
        assert torch.equal(weights, expected[name]), name


@pytest.mark.gpu
def test_offloaded_latents_are_pinned_and_the_results_the_same(make_trainer):
    trainer, plain = make_trainer(use_cpu=False, offload_rollout=True), make_trainer(use_cpu=False)
    for one in (trainer, plain):
        one.train()
    assert trainer.last_rollout.latents.is_pinned()
    assert trainer._micro_batches[0].rows.latents.is_pinned()
    assert not next(iter(trainer.last_rollout.conditioning.positive.values())).is_cuda
    assert torch.equal(trainer.last_rollout.latents, plain.last_rollout.latents.cpu())


def profiled_peak(function):
    """The most bytes that torch's allocator had given out at the same time, as its profiler tells."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


NOTHING = Loaded(Activations(*[RowBytes(0, 0)] * 5), 0)
"""Where calls do not matter, they need not be measured."""


class TestEstimate:
    CONFIG = {"ema_decay": 0.5, "steps_per_generation": 2, "rollout_batch_size": 4, "preview_batch_size": 3}

    def estimate(self, make_config, path, loaded=None, **kwargs):
        args = make_config(**{**self.CONFIG, **kwargs})
        model = ModelArguments(model_name_or_path=path, lora_r=4, lora_alpha=8)
        family, _ = resolve_model(model, args, text_encoders=True)
        _, trained_steps = resolve_policy(family, args)
        prompts = args.geometry(1).groups_per_process
        return estimate(args, family, PROMPTS[0], prune_schedule(args), prompts, trained_steps, 1, loaded)

    def parts(self, memory):
        found = memory.estimate
        return {part.name: (part.rollout, part.update) for part in (*found.parts, found.network, found.decoding)}

    def test_what_lies_there_is_exact(self, make_config, make_trainer, pipeline_path):
        parts = self.parts(self.estimate(make_config, pipeline_path, NOTHING))
        trainer = make_trainer(model=pipeline_path, **self.CONFIG, max_steps=1)
        trainer.train()
        pipeline, denoiser = trainer.pipeline, trainer.family.denoiser
        trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        base = [p for p in denoiser.parameters() if not p.requires_grad] + list(denoiser.buffers())
        states = [value for state in trainer.optimizer.state.values() for value in state.values()]
        sizes = {
            "denoiser": bytes_of(base),
            "text encoders": bytes_of(
                t for m in (pipeline.text_encoder, pipeline.text_encoder_2) for t in (*m.parameters(), *m.buffers())
            ),
            "VAE": bytes_of(pipeline.vae.parameters()),
            "LoRA": bytes_of(trained),
            "optimiser": bytes_of(value for value in states if value.ndim > 0),
            "average (EMA)": bytes_of(trainer.ema.shadow_params),
        }
        assert {name: parts[name] for name in sizes} == {name: (size, size) for name, size in sizes.items()}
        assert parts["gradients"] == (0, sizes["LoRA"])
        kept = [trainer.last_rollout.latents, *(batch.rows.latents for batch in trainer._micro_batches)]
        assert parts["stored latents"][1] == bytes_of(kept)
        assert parts["encoded prompts"][1] == bytes_of(trainer.last_rollout.conditioning.positive.values())
        assert parts["reference (KL)"] == parts["preview decoder"] == (0, 0)

    def test_full_fine_tuning_and_its_reference(self, make_config, pipeline_path):
        args = make_config(beta=0.1, bf16=True)
        model = ModelArguments(model_name_or_path=pipeline_path, use_peft=False)
        family, _ = resolve_model(model, args, text_encoders=True)
        memory = estimate(args, family, PROMPTS[0], prune_schedule(args), 2, (0, 1, 2), 2, NOTHING)
        parts = self.parts(memory)
        whole = bytes_of(family.denoiser.parameters())
        # The copy has the buffers too.
        assert parts["reference (KL)"] == parts["denoiser"] == (module_bytes(family.denoiser),) * 2
        assert parts["DDP's gradients"] == (whole, whole)
        assert parts["gradients"] == (0, whole)
        assert parts["optimiser"] == (2 * whole, 2 * whole)
        assert parts["LoRA"] == (0, 0)
        assert memory.dtype == "float32"

    @pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_an_update_takes_what_the_allocator_gives(self, make_config, make_trainer, pipeline_path, checkpointing):
        kwargs = {"guidance_scale": 2.0, "gradient_checkpointing": checkpointing}
        found = self.estimate(make_config, pipeline_path, **kwargs).estimate
        trainer = make_trainer(model=pipeline_path, **{**self.CONFIG, **kwargs, "max_steps": 1})
        trainer.train()
        rows, model = trainer._micro_batches[0].rows, trainer.family.denoiser.train()

        def update():
            trainer._transition(model, rows, 0).log_prob(rows.latents[:, 1]).sum().backward()

        expected = found.network.update + sum(p.update for p in found.parts if p.name == "gradients")
        # The estimate adds up two peaks, of activations and of gradients, and leaves out the arithmetic on latents.
        assert 0.6 * expected < profiled_peak(update) < 1.1 * expected
        assert found.other_checkpointing < found.network.update or checkpointing

    def test_a_rollout_takes_what_the_allocator_gives(self, make_config, make_trainer, pipeline_path):
        kwargs = {"num_expansions": 12, "num_inference_steps": 6, "audit_fraction": 0.0}
        kwargs |= {"prune_steps": [2], "prune_sizes": [6], "num_generations": 4}
        parts = self.parts(self.estimate(make_config, pipeline_path, **kwargs))
        trainer = make_trainer(model=pipeline_path, **{**self.CONFIG, **kwargs})
        conditioning = trainer._encode(PROMPTS[:2])
        peak = profiled_peak(
            lambda: trainer.sampler.rollout(trainer.family.denoiser, PROMPTS[:2], conditioning=conditioning)
        )
        # The rollout before is not there, and has no prompts.
        stored = parts["stored latents"][0] - parts["stored latents"][1] // 2
        expected = stored + max(parts["network calls"][0], parts["decoding"][0])
        assert 0.6 * expected < peak < 1.05 * expected

    def test_calls_on_shapes_are_those_on_weights(self, make_config, make_trainer, pipeline_path):
        shapes = self.estimate(make_config, pipeline_path)
        trainer = make_trainer(model=pipeline_path, reward_funcs=[Judge()], **self.CONFIG)
        loaded = look(trainer, [{"prompt": PROMPTS[0]}])
        weights = self.estimate(make_config, pipeline_path, loaded)
        assert weights.measured
        assert not shapes.measured
        assert shapes.estimate.network.rollout == pytest.approx(weights.estimate.network.rollout, rel=0.02)
        assert shapes.estimate.network.update == pytest.approx(weights.estimate.network.update, rel=0.02)
        assert shapes.estimate.decoding == weights.estimate.decoding
        assert shapes.estimate.unknown == ["reward models"]
        assert self.parts(weights)["reward models"] == (4 * (3 * 5 + 5),) * 2
        assert all(parameter.grad is None for parameter in trainer.family.denoiser.parameters())
        assert "Reward models" in note(shapes, None)

    def test_offloaded_latents_are_on_the_host(self, make_config, pipeline_path):
        plain = self.estimate(make_config, pipeline_path, NOTHING).estimate
        offloaded = self.estimate(make_config, pipeline_path, NOTHING, offload_rollout=True).estimate
        latents = [next(p for p in one.parts if p.name == "stored latents") for one in (plain, offloaded)]
        assert latents[1].rollout < latents[0].rollout
        # One micro-batch of four, four latents each, of eight rows twice.
        assert (latents[1].update, plain.host) == (latents[0].update // 4, 0)
        assert offloaded.host == latents[0].rollout + latents[0].update // 2


class Judge:
    """A reward with a network."""

    image_type = "pt"

    def __init__(self):
        self.network = torch.nn.Linear(3, 5)

    def __call__(self, prompts, images, **columns):
        return self.network(images.mean((2, 3))).sum(1).tolist()


def test_optimiser_states_are_found_by_a_step(make_config):
    shapes = [torch.empty(8, 16), torch.empty(16)]
    sizes = {optim: optimizer_state_bytes(make_config(optim=optim), shapes) for optim in ("adamw_torch", "sgd")}
    assert sizes == {"adamw_torch": 2 * 4 * (128 + 16), "sgd": 0}
    # Factored: less than one number per weight.
    assert optimizer_state_bytes(make_config(optim="adafactor"), shapes) < 4 * (128 + 16)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (5 * 2**30, "5 GiB"), (1023 * 2**20, "0.999 GiB")]
)
def test_bytes_have_a_unit(size, text):
    assert format_bytes(size) == text


def test_the_table_fits():
    parts = [Part("denoiser", 40 * 2**30, 40 * 2**30), Part("reward models", None, None), Part("LoRA", 0, 0)]
    found = MemoryEstimate(
        parts, Part("network calls", 5 * 2**30, 2000 * 2**30), Part("decoding", 7 * 2**30, 0), 2**30
    )
    file = io.StringIO()
    Console(file=file, width=80, highlight=False).print(table(Memory(found, "bfloat16", False)))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "LoRA" not in text
    # The larger of calls and decoding in a rollout, the sum in an update.
    assert re.search(r"total of what is known +47 GiB +2,040 GiB", text)
    assert re.search(r"reward models +\? +\?", text)
