# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Calls that run out of memory are made again with half the rows, once, and otherwise end in one sentence."""

import pytest
import torch
from dying import PROMPTS
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from trl_progrpo.out_of_memory import CallSize, OutOfMemory, shares_weights


class Limit:
    """Runs out of memory in calls of a module with more than `rows` rows: from its call `first` on, as a real one would."""

    def __init__(self, module, rows, first=0, method="forward"):
        self.module, self.rows, self.first, self.calls = module, rows, first, []
        self.method, self.called = method, getattr(module, method)
        setattr(module, method, self)

    def __call__(self, *args, **kwargs):
        tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        self.calls.append(len(tensor))
        if len(tensor) > self.rows and len(self.calls) > self.first:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"
            )
        return self.called(*args, **kwargs)


def rollout_of(trainer, prompts=PROMPTS[:2]):
    with trainer._inference():
        return trainer.sampler.rollout(trainer.family.denoiser, prompts, conditioning=trainer._encode(prompts))


def assert_same_rollout(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for a, b in zip(one.prune_records, other.prune_records, strict=True):
        assert torch.equal(a.kept, b.kept)


class TestRolloutOutOfMemory:
    def test_the_network_goes_on_with_half_the_rows_and_the_same_results(self, make_trainer):
        expected = rollout_of(make_trainer(rollout_batch_size=3, decode_batch_size=6))
        trainer = make_trainer(rollout_batch_size=6, decode_batch_size=6)
        limit = Limit(trainer.family.denoiser, 3)
        with pytest.warns(
            UserWarning, match=r"`rollout_batch_size` is 6, .* it is 3 .* Set `rollout_batch_size` to 3"
        ):
            rollout = rollout_of(trainer)
        # Two prompts of six, of whom four are left after the second of four steps.
        assert limit.calls == [6, *[3] * 4, *[3] * 4, *[3, 3, 2] * 2]
        assert_same_rollout(rollout, expected)

    def test_in_the_midst_of_a_step(self, make_trainer):
        expected = rollout_of(make_trainer(rollout_batch_size=6))
        trainer = make_trainer(rollout_batch_size=6)
        limit = Limit(trainer.family.denoiser, 3, first=3)
        with pytest.warns(UserWarning, match="rollout_batch_size"):
            rollout = rollout_of(trainer)
        assert limit.calls[:6] == [6, 6, 6, 6, 3, 3]
        for name, value in rollout.state_dict().items():
            torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(rollout.member, expected.member)
        assert [record.kept.tolist() for record in rollout.prune_records] == [
            record.kept.tolist() for record in expected.prune_records
        ]

    @pytest.mark.parametrize("field", ["decode_batch_size", "preview_batch_size"])
    def test_a_decoder_goes_on_with_half_the_images(self, make_trainer, field):
        sizes = {"rollout_batch_size": 6, "decode_batch_size": 8, "preview_batch_size": 12}
        expected = rollout_of(make_trainer(**{**sizes, field: sizes[field] // 2}))
        trainer = make_trainer(**sizes)
        limit = Limit(trainer.pipeline.vae, 8 if field == "preview_batch_size" else 7, method="decode")
        if field == "decode_batch_size":
            limit.first = 1  # the previews fit
        with pytest.warns(UserWarning, match=f"`{field}` is {sizes[field]}, .* it is {sizes[field] // 2} "):
            rollout = rollout_of(trainer)
        assert limit.calls == ([12, 6, 6, 8] if field == "preview_batch_size" else [12, 8, 4, 4])
        assert_same_rollout(rollout, expected)

    def test_a_whole_run_and_its_evaluation_stay_small(self, make_trainer, adapter_of):
        small = make_trainer(rollout_batch_size=3)
        small.train()
        trainer = make_trainer(rollout_batch_size=6)
        limit = Limit(trainer.family.denoiser, 4)
        with pytest.warns(UserWarning, match="rollout_batch_size") as told:
            trainer.train()
        trainer.generate(PROMPTS)
        assert len([1 for warning in told if "rollout_batch_size" in str(warning.message)]) == 1
        expected = adapter_of(small)
        assert [rows for rows in limit.calls if rows > 4] == [6]
        for name, weights in adapter_of(trainer).items():
            assert torch.equal(weights, expected[name]), name

    def test_a_second_time_ends_the_run(self, make_trainer):
        trainer = make_trainer(rollout_batch_size=6)
        Limit(trainer.family.denoiser, 2)
        with (
            pytest.warns(UserWarning, match="rollout_batch_size"),
            pytest.raises(OutOfMemory, match=r"`rollout_batch_size` is 3, halved from 6, .*set it to 1, or ") as error,
        ):
            rollout_of(trainer)
        assert "\n" not in str(error.value)
        assert "2.00 GiB" not in str(error.value)

    def test_one_row_cannot_be_halved(self, make_trainer):
        trainer = make_trainer(rollout_batch_size=1)
        Limit(trainer.family.denoiser, 0)
        with pytest.raises(OutOfMemory, match=r"`rollout_batch_size` is 1 and .*; make images smaller"):
            rollout_of(trainer)

    def test_sharded_weights_stop_at_once(self):
        """A process that makes more calls than the others waits for them forever."""
        network = torch.nn.Linear(2, 2)
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            fully_shard(network, mesh=init_device_mesh("cpu", (1,)))
            assert shares_weights(network)
            limit = Limit(network, 3)
            calls = CallSize("rollout_batch_size", 6, "use less")
            with pytest.raises(OutOfMemory, match=r"`rollout_batch_size` is 6, .* set it to 3, .* shared out"):
                list(calls.each(12, lambda batch: limit(torch.zeros(12, 2)[batch]), network))
        finally:
            torch.distributed.destroy_process_group()
        assert limit.calls == [6]
        assert not shares_weights(torch.nn.Linear(2, 2))

    def test_a_parameter_of_zero_3_counts_as_sharded(self):
        network = torch.nn.Linear(2, 2)
        network.weight.ds_id = 0
        assert shares_weights(network)


class TestUpdateOutOfMemory:
    @pytest.mark.parametrize("gradient_checkpointing", [False, True])
    def test_one_sentence(self, make_trainer, gradient_checkpointing):
        trainer = make_trainer(rollout_batch_size=2, gradient_checkpointing=gradient_checkpointing)
        Limit(trainer.family.denoiser, 3)
        with pytest.raises(OutOfMemory, match="`per_device_train_batch_size` is 4, and the update ran out") as error:
            trainer.train()
        assert ("`gradient_checkpointing`" in str(error.value)) is not gradient_checkpointing
        assert "set it to 2, `gradient_accumulation_steps` and `steps_per_generation` to 2 times" in str(error.value)
        assert "\n" not in str(error.value)

    def test_states_of_the_optimiser(self, make_trainer):
        trainer = make_trainer()
        optimizer = trainer.create_optimizer()

        def step(*args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        optimizer.step = step
        with pytest.raises(OutOfMemory, match="`trl-progrpo plan` prints what takes how much"):
            trainer.train()
