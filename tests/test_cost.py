# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a schedule costs is what a run counts, and what the paper reports; FLOPs are those of the real networks."""

import math
import time
from dataclasses import replace

import pytest
import torch

from trl_progrpo.adapters import add_adapter, default_lora_config
from trl_progrpo.calibration import calibration_config, measure_seconds
from trl_progrpo.cost import PhaseCost, PruneSchedule, UnitCost, WorkCount
from trl_progrpo.families import load_preview_decoder
from trl_progrpo.families.skeleton import preview_decoder_skeleton, skeleton
from trl_progrpo.families.text_skeleton import encode
from trl_progrpo.flops import count_flops, unit_flops
from trl_progrpo.rewards import RewardRunner


# TFLOPs of the paper's cost table, SD3.5 medium: a step with guidance is two evaluations; training is four times a forward
# pass; an image is decoded and scored for 2.82.
PAPER = UnitCost(network=3.88 / 2, training=4 * 3.88 / 2, decode=2.82, preview=2.82)


@pytest.mark.parametrize(
    ("schedule", "reported"),
    [
        (PruneSchedule.plain(10, 24), 453474),
        (PruneSchedule(10, 12, 48, (5, 7), (24, 12)), 335627),
        (PruneSchedule(10, 12, 24, (5, 7), (16, 12)), 267366),
    ],
)
def test_the_papers_totals(schedule, reported):
    total = WorkCount.of(schedule, num_prompts=96, nfe_per_row=2).cost(PAPER).total
    assert total == pytest.approx(reported, rel=0.005)


def test_sizes_of_a_schedule():
    pro = PruneSchedule(10, 12, 48, (5, 7), (24, 16))
    assert pro.sizes == (48, 24, 16, 12)
    assert pro.trajectory_steps == 48 * 6 + 24 * 2 + 16 * 2
    assert (pro.num_previews, pro.num_finished, pro.selects_on_finished) == (72, 16, True)
    plain = PruneSchedule.plain(10, 24)
    assert (plain.sizes, plain.num_previews, plain.selects_on_finished) == ((24,), 0, False)
    assert PruneSchedule(4, 3, 6).sizes == (6, 3)


@pytest.mark.parametrize(
    "bad", [((1,), ()), ((1,), (6,)), ((1, 2), (4, 5)), ((1,), (2,))], ids=["lengths", "equal", "rising", "below"]
)
def test_impossible_schedules_are_refused(bad):
    with pytest.raises(ValueError, match="give"):
        PruneSchedule(4, 3, 6, *bad)


def test_prices():
    work = WorkCount(
        nfe=2, preview_decodes=3, decodes=5, preview_reward_calls=7, final_reward_calls=11, training_passes=13,
        reference_passes=17,
    )  # fmt: skip
    unit = UnitCost(network=1, training=100, decode=10, preview=1000, reward=1e4, preview_reward=1e5)
    assert work.cost(unit) == PhaseCost(denoise=2, preview=3000, decode=50, reward=810000, update=1317)
    assert work.cost(unit).total == 814369
    assert work.reward_calls == 18


def count_training(trainer):
    """Rows through the denoiser with gradients, and without them in the update, counted where they happen."""
    rows, updating = {"training": 0, "reference": 0}, [False]

    def count(module, args, kwargs, output):
        if torch.is_grad_enabled():
            rows["training"] += len(kwargs["hidden_states"])
        elif updating[0]:
            rows["reference"] += len(kwargs["hidden_states"])

    trainer.family.denoiser.register_forward_hook(count, with_kwargs=True)
    step_loss = trainer._step_loss

    def watched(*args):
        updating[0] = True
        loss = step_loss(*args)
        updating[0] = False
        return loss

    trainer._step_loss = watched
    return rows


@pytest.mark.parametrize(
    "changes",
    [
        {"num_expansions": 4, "prune_steps": None, "prune_sizes": None},
        {"prune_steps": None, "prune_sizes": None},
        {"guidance_scale": 3.0},
        {"sde_window": "fixed", "sde_window_size": 2, "prune_steps": [1, 2], "prune_sizes": [5, 4]},
        {"sde_window": "random", "sde_window_size": 1, "num_iterations": 2, "beta": 0.1, "guidance_scale": 2.0},
        {"num_expansions": 9, "prune_steps": [0, 2], "prune_sizes": [7, 5], "audit_fraction": 0.5},
    ],
    ids=["plain", "post-hoc", "pro with guidance", "pro with a window", "kl and two passes", "audited"],
)
def test_counts_are_those_of_a_run(make_trainer, make_config, redness, changes):
    args = make_config(**{"audit_fraction": 0.0, "max_steps": 2, **changes})
    args.max_steps = args.num_iterations
    trainer = make_trainer(args, reward_funcs=[redness, redness], preview_reward_funcs=redness)
    rows = count_training(trainer)
    trainer.train()
    logged = trainer.state.log_history[0]
    work = WorkCount.of(
        PruneSchedule(
            args.num_inference_steps, args.num_generations, args.num_expansions,
            tuple(args.prune_steps or ()), tuple(args.prune_sizes or ()),
        ),
        num_prompts=args.geometry(1).num_prompts,
        trained_steps=len(trainer.last_rollout.step_indices),
        nfe_per_row=trainer.family.nfe_per_row,
        num_rewards=2,
        num_preview_rewards=1,
        num_iterations=args.num_iterations,
        reference=args.beta > 0,
        audited=args.audit_fraction * args.geometry(1).num_prompts,
    )  # fmt: skip
    for name in ("nfe", "decodes", "preview_decodes", "reward_calls"):
        assert logged[f"sampling/{name}"] == getattr(work, name), name
    assert rows == {"training": work.training_passes, "reference": work.reference_passes}


class TestFlops:
    @pytest.fixture(scope="class")
    def families(self, make_family, pipeline_path):
        """The random pipeline with weights, and without, both with an adapter."""
        families = make_family(), make_family(skeleton(pipeline_path, text_encoders=True))
        for family in families:
            add_adapter(family, default_lora_config(family))
        return families

    def test_without_weights_they_are_the_same(self, families):
        real, bare = families
        with torch.no_grad():
            expected = unit_flops(real, real.encode_prompts(["a red circle"]))
        assert unit_flops(bare, encode(bare, ["a red circle"])) == expected
        assert expected.network > 0
        assert expected.preview == expected.decode > 0
        # The backward pass goes through all activations, not to the frozen weights.
        assert 2 < expected.training / expected.network < 3

    def test_a_matrix_product(self):
        a, b = torch.zeros(3, 5), torch.zeros(5, 7, requires_grad=True)
        assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7
        assert count_flops(lambda: (a @ b).sum().backward(), gradients=True) == 2 * 2 * 3 * 5 * 7

    def test_attention_counts_on_every_device(self):
        def attention(device):
            q = torch.zeros(1, 2, 8, 4, device=device)
            return count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))

        assert attention("cpu") == attention("meta") == 2 * (2 * 2 * 8 * 8 * 4)

    def test_checkpointing_costs_a_forward_pass(self, make_family, pipeline_path):
        family = make_family(skeleton(pipeline_path, text_encoders=True))
        conditioning = encode(family, ["a red circle"])
        plain = unit_flops(family, conditioning)
        family.denoiser.enable_gradient_checkpointing()
        again = unit_flops(family, conditioning)
        assert again.network == plain.network
        assert plain.network * 0.8 < again.training - plain.training <= plain.network

    def test_a_preview_decoder_and_small_previews(self):
        from trl_progrpo.families import family_class

        family = family_class("shapes")(skeleton("shapes", text_encoders=True))
        conditioning = encode(family, ["a red circle"])
        decoder = preview_decoder_skeleton("shapes")
        vae, small = unit_flops(family, conditioning), unit_flops(family, conditioning, decoder)
        assert small.preview < small.decode == vae.decode
        halved = unit_flops(family, conditioning, decoder, preview_downscale=2)
        assert halved.preview == pytest.approx(small.preview / 4)
        real, latents = load_preview_decoder("shapes", torch.device("cpu")), torch.zeros(1, *family.latent_shape)
        assert count_flops(lambda: real.decode(latents)) == small.preview

    def test_a_missing_preview_decoder(self):
        with pytest.raises(ValueError, match=r"`preview_decoder` './nowhere'"):
            preview_decoder_skeleton("./nowhere")


def slow(seconds):
    def score(prompts, images, **columns):
        time.sleep(seconds * len(prompts))
        return torch.linspace(0, 1, len(prompts)).tolist()

    score.image_type = "pt"
    return score


def test_measured_seconds(make_trainer, make_config, tmp_path):
    args = make_config(beta=0.1, audit_fraction=0.5)
    before = dict(vars(args))
    small = calibration_config(args, str(tmp_path))
    assert vars(args) == before
    assert small.num_expansions % small.rollout_batch_size == 0
    trainer = make_trainer(small, reward_funcs=slow(0.002), preview_reward_funcs=slow(0.004))
    unit = measure_seconds(trainer, seconds=0.01)
    # Sleep is never shorter than asked for.
    assert unit.reward >= 0.002
    assert unit.preview_reward >= 0.004
    assert all(math.isfinite(value) and value > 0 for value in vars(unit).values())
    assert trainer.state.global_step < 100


def test_the_first_step_is_never_the_price(make_trainer, make_config, tmp_path):
    """However long it takes, as it does where networks are compiled."""
    trainer = make_trainer(calibration_config(make_config(), str(tmp_path)))
    calls = []

    def compiled(prompts, images, **columns):
        calls.append(len(images))
        time.sleep(0.5 if len(calls) <= 2 else 0.0)
        return [0.0] * len(images)

    compiled.image_type = "pt"
    trainer.sampler.scorer = trainer.sampler.preview_scorer = RewardRunner(compiled)
    unit = measure_seconds(trainer, seconds=0.001)
    assert trainer.state.global_step == 2
    assert unit.reward < 0.5 / max(calls)


@pytest.mark.parametrize(
    ("numbers", "sizes"),
    [
        # trained, rollout and decode batches, previews -> started, finished
        ((2, 96, None, False), (96, 96)),
        ((48, 32, 20, False), (64, 60)),
        ((48, 192, None, True), (384, 192)),
        ((4, 6, 2, True), (6, 4)),
    ],
)
def test_what_is_timed_fills_batches(make_config, tmp_path, numbers, sizes):
    trained, calls, decoded, previews = numbers
    args = make_config(
        num_generations=2, num_expansions=2, prune_steps=None, prune_sizes=None, per_device_train_batch_size=trained,
        gradient_accumulation_steps=1, rollout_batch_size=calls, decode_batch_size=decoded,
    )  # fmt: skip
    small = calibration_config(args, str(tmp_path), previews=previews)
    finished = small.prune_sizes[-1] if previews else sizes[1]
    assert (small.num_expansions, finished) == sizes
    assert small.num_generations == trained


def test_measuring_a_plain_run_knows_no_previews(make_trainer, make_config, tmp_path):
    plain = {"num_expansions": 4, "prune_steps": None, "prune_sizes": None}
    args = make_config(**plain, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    trainer = make_trainer(calibration_config(args, str(tmp_path)))
    unit = measure_seconds(trainer, seconds=0.01)
    assert replace(unit, network=1, training=1, decode=1, reward=1) == UnitCost(1, 1, 1, reward=1)
