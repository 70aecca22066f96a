# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The family that docs/families.md adds keeps every promise of a family; its tables and the benchmark script are current."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
from pipelines import seeded
from pipelines_qwen import DECODER, PROMPTS, word_tokenizer
from transformers import Gemma2Config, Gemma2Model

from trl_progrpo.families import FAMILIES
from trl_progrpo.testing import check_family


ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/families.md").read_text(encoding="utf-8")


@seeded
def make_tiny_lumina2() -> Lumina2Pipeline:
    tokenizer = word_tokenizer(" ".join(PROMPTS), ("<pad>", "<bos>"), bos="<bos>", model_max_length=64)
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        latent_channels=4,
        shift_factor=0.1,
    )
    transformer = Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(8, 8, 8),
        axes_lens=(64, 16, 16),
        cap_feat_dim=16,
    )
    gemma = Gemma2Config(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, **DECODER)
    return Lumina2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae,
        text_encoder=Gemma2Model(gemma),
        tokenizer=tokenizer,
    )


def test_the_family_of_the_page(monkeypatch):
    monkeypatch.setattr(FAMILIES, "_objects", dict(FAMILIES._objects))
    (code,) = (block for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S) if "(Family)" in block)
    exec(compile(code, "docs/families.md", "exec"), {"__name__": "documentation"})
    report = check_family(
        make_tiny_lumina2,
        heights_widths=[(32, 48)],
        num_inference_steps=[2],
        guidance_scales=[1.0, 4.0],
        prompts=PROMPTS,
        max_sequence_length=32,
    )
    assert report.family == "Lumina2Family"
    assert report.log_prob_difference == 0


def test_every_family_and_policy_is_in_the_table():
    for name in FAMILIES.registered():
        (row,) = (line for line in PAGE.splitlines() if f"| `{name}` |" in line)
        family = FAMILIES.get(name)
        assert f"| `{family.denoiser_name}` |" in row
        if "the same |" not in row:
            assert all(f"`{policy}`" in row for policy in family.policies)


@pytest.fixture(scope="module")
def real_sizes():
    spec = importlib.util.spec_from_file_location("real_sizes", ROOT / "examples/benchmarks/real_sizes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_benchmark_script_runs_on_tiny_networks(real_sizes, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["real_sizes.py", "--smoke", "--model", "sd3.5-medium"])
    real_sizes.main()
    printed = capsys.readouterr().out
    # 3 rows, then 2, twice each for guidance.
    assert "network evaluations: 10.000" in printed
    assert "seconds, update" in printed


@pytest.mark.parametrize("name", ["sdxl", "flux.1-dev"])
@torch.no_grad()
def test_benchmark_pipelines_fit_their_conditioning(real_sizes, name):
    pipeline = real_sizes.make_pipeline(name, "cpu", torch.float32, smoke=True)
    run = real_sizes.RUNS[name]
    family = FAMILIES.get(type(pipeline).__name__)(pipeline, height=32, width=32, guidance_scale=run["guidance_scale"])
    conditioning = real_sizes.RandomPrompts(family, run["conditioning"])(["one", "two"])
    latents, timestep = torch.randn(2, *family.latent_shape), family.make_schedule(2).timesteps[0]
    assert family.predict(family.denoiser, latents, timestep, conditioning).shape == latents.shape
