# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Options that trade memory or start-up time and must not change what is trained."""

import pytest
import torch


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
