# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Train the embedded default from nothing: `python scripts/build_tiny_model.py --output_dir shapes-model`.

What the shipped model measures (seed 0; `--stages report` prints the lower rows again, for 1024 scenes or samples each):

| | |
|---|---|
| autoencoder, scenes reconstructed strictly right | .985 (counts .970) |
| samples, train captions, guidance 1: graded, strict | .537, .222 |
| samples, train captions, guidance 2: graded, strict | .653, .372 |
| samples, held-out captions, guidance 1: graded, strict | .524, .213 |
| samples, held-out captions, guidance 2: graded, strict | .640, .353 |
| rank correlation of rewards, preview decoder and autoencoder | .822 |
| safetensors in all | 6.59 MB |

On 2 cores of an AMD EPYC, with other work kept off, drawing the scenes took 38 s, stage vae 355 s, flow 1220 s, preview 116 s
and the measurements above 52 s: 29 minutes of training and one of measuring.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.multiprocessing import spawn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from trl_progrpo.metrics import rank_correlation
from trl_progrpo.tiny import world
from trl_progrpo.tiny.loading import load_pipeline, load_preview_decoder
from trl_progrpo.tiny.verifier import verify


STAGES = ("vae", "flow", "preview", "report")

LATENT_CHANNELS = 4
LATENT_SIZE = world.IMAGE_SIZE // 4
#: Start and end tokens around the longest caption; sequences this short keep the denoiser cheap.
MAX_TOKENS = 10
TEXT_HIDDEN, TEXT_HIDDEN_2 = 64, 32
DENOISER_LAYERS, DENOISER_HEADS, DENOISER_HEAD_DIM = 4, 4, 24

#: How often each kind of caption is seen. The autoencoder sees more small objects, which are hardest to draw.
FLOW_MIX = {"single": 0.10, "count": 0.25, "pair": 0.25, "relation": 0.40}
VAE_MIX = {"single": 0.08, "count": 0.52, "pair": 0.20, "relation": 0.20}

KL_WEIGHT = 5e-4
OBJECT_WEIGHT = 4.0
CAPTION_DROP = 0.1
EMA_DECAY = 0.999
#: Without its third text encoder the stock pipeline appends this many zero tokens unless told `max_sequence_length=0`.
STOCK_ZERO_TOKENS = 256
ZERO_TOKENS_EVERY, ZERO_TOKENS_ROWS = 16, 8


@dataclass(frozen=True)
class Pool:
    """
    Rendered training scenes.

    Args:
        images (`torch.Tensor` of shape `(N, 3, 32, 32)`, uint8): the scenes.
        captions (`list[str]`): their N captions, all of the train split.
        kinds (`list[str]`): their N kinds.
    """

    images: torch.Tensor
    captions: list[str]
    kinds: list[str]

    def weights(self, mix: dict[str, float]) -> torch.Tensor:
        """Sampling weights `(N,)` under which each kind is seen as often as `mix` says."""
        counts = {kind: max(1, self.kinds.count(kind)) for kind in mix}
        return torch.tensor([mix[kind] / counts[kind] for kind in self.kinds], dtype=torch.float64)


def build_pool(size: int, seed: int, split: str = "train", mix: dict[str, float] = FLOW_MIX) -> Pool:
    """Sample and render `size` scenes of one split."""
    rng = np.random.default_rng(seed)
    by_kind = {kind: [c for c in world.captions_of(split) if c.kind == kind] for kind in world.KINDS}
    mix = {kind: share for kind, share in mix.items() if by_kind[kind]}
    share = np.array(list(mix.values())) / sum(mix.values())
    kinds = rng.choice(list(mix), size=size, p=share)
    captions = [by_kind[kind][rng.integers(len(by_kind[kind]))] for kind in kinds]
    images = world.render(world.sample_scenes(captions, seed=seed + 1))
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Pool(images, [str(c) for c in captions], [c.kind for c in captions])


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 `(N, 3, 32, 32)` to float in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_verifier_range(images: torch.Tensor) -> np.ndarray:
    """Float `(N, 3, 32, 32)` in [-1, 1] to the `(N, 32, 32, 3)` uint8 that a saved picture would hold."""
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def cosine_lr(step: int, steps: int, lr: float, warmup: int = 100, final: float = 0.05) -> float:
    """Linear warm-up, then a cosine from `lr` to `final * lr`."""
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def training_steps(name: str, steps: int, lr: float, optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, dict]]:
    """Count steps, set the learning rate, and print what the caller writes into the yielded dictionary."""
    start, log = time.perf_counter(), {}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(step, steps, lr)
        yield step, log
        if (step + 1) % max(1, steps // 20) == 0 and not (dist.is_initialized() and dist.get_rank()):
            numbers = "  ".join(f"{key} {float(value):.4f}" for key, value in log.items())
            print(f"[{name}] step {step + 1}/{steps}  {numbers}  {time.perf_counter() - start:.0f} s", flush=True)


def seeded(seed: int, make):
    """Call `make()` with weights drawn from `seed`, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


# ---------------------------------------------------------------- autoencoder


def make_vae() -> AutoencoderKL:
    """The untrained autoencoder: 32x32x3 to 8x8x4. Few channels at full size, where the decoder spends its time."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=world.IMAGE_SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def object_weight(images: torch.Tensor) -> torch.Tensor:
    """Loss weights `(N, 1, 32, 32)` that are larger on objects and around their edges than on empty background."""
    lit = (images.amax(dim=1, keepdim=True) > -0.6).float()
    return 1 + OBJECT_WEIGHT * F.max_pool2d(lit, kernel_size=5, stride=1, padding=2)


def train_vae(pool: Pool, steps: int, batch_size: int, lr: float, seed: int) -> AutoencoderKL:
    """Train the autoencoder with an object-weighted L1 loss and measure its `scaling_factor` and `shift_factor`."""
    vae = seeded(seed, make_vae).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    weights = pool.weights(VAE_MIX)
    ema = Ema(vae)
    optimizer = torch.optim.Adam(vae.parameters(), lr=lr, betas=(0.9, 0.99))
    for _, log in training_steps("vae", steps, lr, optimizer):
        rows = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
        images = to_model_range(pool.images[rows]).to(memory_format=torch.channels_last)
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample(generator=generator)).sample
        reconstruction = (object_weight(images) * (decoded - images).abs()).mean()
        kl = posterior.kl().mean() / (LATENT_CHANNELS * LATENT_SIZE**2)
        loss = reconstruction + KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        ema.update()
        log.update(reconstruction=reconstruction.detach(), kl=kl.detach())
    ema.swap()
    vae = vae.to(memory_format=torch.contiguous_format)
    latents = encode_images(vae, pool.images[:4096])
    vae.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
    return vae


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """uint8 images `(N, 3, 32, 32)` to raw posterior means `(N, 4, 8, 8)`."""
    return torch.cat([vae.encode(to_model_range(part)).latent_dist.mean for part in images.split(batch_size)])


def scale_latents(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Raw latents to what the denoiser sees, as the stock pipeline has it."""
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Scaled latents `(N, 4, 8, 8)` to images in [-1, 1]; the inverse of `encode_images` and `scale_latents`."""
    raw = latents / vae.config.scaling_factor + vae.config.shift_factor
    return torch.cat([vae.decode(part).sample for part in raw.split(batch_size)])


class Ema:
    """
    An exponential moving average of trainable parameters, with a short memory at the start of training.

    `diffusers.training_utils.EMAModel` begins one update later; the shipped model was trained with this one.
    """

    def __init__(self, *modules: torch.nn.Module, decay: float = EMA_DECAY):
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged and the trained parameters; call it twice to look at the average in passing."""
        for parameter, shadow in zip(self.parameters, self.shadow, strict=True):
            trained = parameter.clone()
            parameter.copy_(shadow)
            shadow.copy_(trained)


# ---------------------------------------------------------------- text and denoiser


def make_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges make every word of the grammar one token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(world.WORDS)], trainer)
    learned = json.loads(bpe.to_str())["model"]
    special = ["<|startoftext|>", "<|endoftext|>"]
    # The trainer numbers equally frequent tokens in an order that changes from call to call.
    tokens = sorted({*learned["vocab"], *(f"{letter}</w>" for letter in letters)} - {*special})
    vocab = {token: number for number, token in enumerate([*special, *tokens])}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)
    broken = [word for word in world.WORDS if len(tokenizer(word).input_ids) != 3]
    if broken:
        raise RuntimeError(f"The tokenizer splits the words {broken}; every word of the grammar must be one token.")
    return tokenizer


def make_text_encoder(tokenizer: CLIPTokenizer, hidden_size: int, num_layers: int) -> CLIPTextModelWithProjection:
    """A small CLIP text tower. The denoiser reads the last layer but one, so there must be two or more."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        projection_dim=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def make_denoiser() -> SD3Transformer2DModel:
    """The untrained denoiser; its modulation and output start at zero, so that every block starts as the identity."""
    text_dim = TEXT_HIDDEN + TEXT_HIDDEN_2
    denoiser = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=DENOISER_LAYERS,
        attention_head_dim=DENOISER_HEAD_DIM,
        num_attention_heads=DENOISER_HEADS,
        joint_attention_dim=text_dim,
        caption_projection_dim=DENOISER_HEADS * DENOISER_HEAD_DIM,
        pooled_projection_dim=text_dim,
        pos_embed_max_size=LATENT_SIZE // 2,
    )
    for name, parameter in denoiser.named_parameters():
        if "norm1" in name or name.startswith(("norm_out.", "proj_out.")):
            torch.nn.init.zeros_(parameter)
    return denoiser


def make_pipeline(vae: AutoencoderKL, seed: int) -> StableDiffusion3Pipeline:
    """A stock pipeline around a trained autoencoder, with untrained text encoders and denoiser."""
    # One for both encoders: they are trained on the same ids.
    tokenizer = make_tokenizer()
    pipe = StableDiffusion3Pipeline(
        vae=vae,
        transformer=seeded(seed, make_denoiser),
        text_encoder=seeded(seed + 1, lambda: make_text_encoder(tokenizer, TEXT_HIDDEN, num_layers=3)),
        text_encoder_2=seeded(seed + 2, lambda: make_text_encoder(tokenizer, TEXT_HIDDEN_2, num_layers=2)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
        # With the default end at .001 the last of ten steps would change nothing and still cost one evaluation.
        scheduler=FlowMatchEulerDiscreteScheduler(shift_terminal=0.1),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids `(N, MAX_TOKENS)`, padded as the stock pipeline pads."""
    batch = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return batch.input_ids


def encode_ids(pipe: StableDiffusion3Pipeline, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `pipe.encode_prompt(..., max_sequence_length=0)` returns, with gradients and from token ids."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    sequence = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
    return sequence, pooled


def train_flow(
    pipe: StableDiffusion3Pipeline, pool: Pool, steps: int, batch_size: int, lr: float, seed: int, output_dir: Path
) -> None:
    """
    Train denoiser and text encoders together by flow matching on the latents of the pool, for one cycle of the learning
    rate.

    Eight times on the way the averaged model is judged on a few captions and saved, so that `output_dir` soon holds
    something to look at. In a process group every process draws rows of its own, and all step by the mean gradient.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    modules = (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2)
    for module in modules:
        module.train().requires_grad_(True)
    ema = Ema(*modules)
    optimizer = torch.optim.AdamW(ema.parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)

    generator = torch.Generator().manual_seed(seed * world_size + rank)
    latents = scale_latents(pipe.vae, encode_images(pipe.vae, pool.images))
    ids, empty_ids = token_ids(pipe.tokenizer, pool.captions), token_ids(pipe.tokenizer, [""])

    for step, log in training_steps("flow", steps, lr, optimizer):
        with_zero_tokens = step % ZERO_TOKENS_EVERY == ZERO_TOKENS_EVERY - 1
        size = min(batch_size, ZERO_TOKENS_ROWS) if with_zero_tokens else batch_size
        rows = torch.randint(len(latents), (size,), generator=generator)
        dropped = torch.rand(size, 1, generator=generator) < CAPTION_DROP
        sequence, pooled = encode_ids(pipe, torch.where(dropped, empty_ids, ids[rows]))
        if with_zero_tokens:
            # Now and then the sequence of a plain `pipe(prompt)` call, so that it works as well as the short one.
            sequence = F.pad(sequence, (0, 0, 0, STOCK_ZERO_TOKENS))

        sigma = torch.sigmoid(0.3 + torch.randn(size, generator=generator))
        noise = torch.randn(latents[rows].shape, generator=generator)
        velocity = pipe.transformer(
            hidden_states=torch.lerp(latents[rows], noise, sigma[:, None, None, None]),
            timestep=sigma * pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
        ).sample
        loss = F.mse_loss(velocity, noise - latents[rows])
        optimizer.zero_grad()
        (loss * size / batch_size).backward()
        if world_size > 1:
            average_gradients(ema.parameters, world_size)
        torch.nn.utils.clip_grad_norm_(ema.parameters, 1.0)
        optimizer.step()
        ema.update()
        log["loss"] = loss.detach() if "loss" not in log else torch.lerp(log["loss"], loss.detach(), 0.005)
        if rank == 0 and (step + 1) % max(1, steps // 8) == 0:
            ema.swap()
            log.update(judge_and_save(pipe, output_dir))
            ema.swap()
    ema.swap()
    for module in modules:
        module.eval().requires_grad_(False)
    if rank == 0:
        pipe.save_pretrained(output_dir)


def average_gradients(parameters: list[torch.nn.Parameter], world_size: int) -> None:
    """Gradients become their mean over all processes, in one message."""
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    dist.all_reduce(flat)
    for parameter, mean in zip(parameters, (flat / world_size).split([p.numel() for p in parameters])):
        parameter.grad.copy_(mean.view_as(parameter))


def judge_and_save(pipe: StableDiffusion3Pipeline, output_dir: Path) -> dict[str, float]:
    """Mean rewards of 128 train captions, and a copy of the pipeline on disk."""
    captions = evaluation_captions("train", 128)
    verdict = verify(sample_images(pipe, captions), captions)
    pipe.save_pretrained(output_dir)
    return {"graded": verdict.graded.mean(), "strict": verdict.strict.mean()}


# ---------------------------------------------------------------- preview decoder


def make_preview_decoder() -> AutoencoderTiny:
    """A decoder of few, narrow layers for scaled latents. Its encoder only completes the diffusers class."""
    return AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 0, 1),
        decoder_block_out_channels=(8, 8, 8),
        num_decoder_blocks=(3, 1, 0),
        scaling_factor=1.0,
    )


def imperfect_latents(latents: torch.Tensor, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """
    Latents like those of a denoiser's mistakes and unfinished drafts: of the chosen rows, half have some of their
    patches taken from other scenes, and all have a little noise.
    """
    size = len(rows)
    others = latents[torch.randint(len(latents), (size,), generator=generator)]
    share = (torch.rand(size, 1, 1, 1, generator=generator) - 0.5).clamp(min=0)
    foreign = torch.rand(size, 1, LATENT_SIZE // 2, LATENT_SIZE // 2, generator=generator) < share
    mixed = torch.where(F.interpolate(foreign.float(), scale_factor=2) > 0, others, latents[rows])
    noise_level = 0.3 * torch.rand(size, 1, 1, 1, generator=generator)
    return mixed + noise_level * torch.randn(mixed.shape, generator=generator)


def train_preview(
    vae: AutoencoderKL, pool: Pool, steps: int, batch_size: int, lr: float, seed: int
) -> AutoencoderTiny:
    """Regress the tiny autoencoder onto the full one, on drafts as well, because previews are taken of drafts."""
    preview = seeded(seed, make_preview_decoder).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    weights = pool.weights(VAE_MIX)
    latents = scale_latents(vae, encode_images(vae, pool.images))
    ema = Ema(preview)
    optimizer = torch.optim.Adam(preview.parameters(), lr=lr, betas=(0.9, 0.99))
    for _, log in training_steps("preview", steps, lr, optimizer):
        rows = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
        drafts = imperfect_latents(latents, rows, generator)
        target = decode_latents(vae, drafts)
        decoded = preview.decode(drafts).sample
        reconstruction = (object_weight(target) * (decoded - target).abs()).mean()
        encoding = F.mse_loss(preview.encode(to_model_range(pool.images[rows])).latents, latents[rows])
        optimizer.zero_grad()
        (reconstruction + encoding).backward()
        torch.nn.utils.clip_grad_norm_(preview.parameters(), 1.0)
        optimizer.step()
        ema.update()
        log.update(reconstruction=reconstruction.detach(), encoding=encoding.detach())
    ema.swap()
    return preview.to(memory_format=torch.contiguous_format).eval()


# ---------------------------------------------------------------- report


@torch.no_grad()
def sample_images(
    pipe: StableDiffusion3Pipeline,
    captions: list[str],
    guidance_scale: float = 1.0,
    num_inference_steps: int = 10,
    seed: int = 0,
    batch_size: int = 128,
    output_type: str = "np",
    max_sequence_length: int = 0,
) -> np.ndarray | torch.Tensor:
    """Stock pipeline calls in batches: images `(N, 32, 32, 3)` in [0, 1], or scaled latents for `"latent"`."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(captions), batch_size):
        output = pipe(
            captions[start : start + batch_size],
            height=world.IMAGE_SIZE,
            width=world.IMAGE_SIZE,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generator,
            max_sequence_length=max_sequence_length,
            output_type=output_type,
        )
        parts.append(output.images)
    return torch.cat(parts) if output_type == "latent" else np.concatenate(parts)


def evaluation_captions(split: str, size: int) -> list[str]:
    """`size` captions of a split, spread evenly over its list and so over its kinds."""
    captions = [str(caption) for caption in world.captions_of(split)]
    at = np.linspace(0, len(captions), num=size, endpoint=False).astype(int)
    return [captions[index] for index in at]


def report_vae(vae: AutoencoderKL, size: int, seed: int) -> list[str]:
    """Strict verdicts on reconstructions of freshly drawn scenes, by kind."""
    pool = build_pool(size, seed=seed)
    latents = scale_latents(vae, encode_images(vae, pool.images))
    strict = verify(to_verifier_range(decode_latents(vae, latents)), pool.captions).strict
    kinds = np.array(pool.kinds)
    by_kind = "  ".join(f"{kind} {strict[kinds == kind].mean():.3f}" for kind in world.KINDS)
    return [f"autoencoder strict ({size} scenes): {strict.mean():.3f}  ({by_kind})"]


def report_samples(pipe: StableDiffusion3Pipeline, size: int, seed: int) -> list[str]:
    """Graded and strict rewards of samples for both splits, without guidance and with guidance 2."""
    lines = []
    for split in ("train", "test"):
        captions = evaluation_captions(split, size)
        for guidance_scale in (1.0, 2.0):
            verdict = verify(sample_images(pipe, captions, guidance_scale, seed=seed), captions)
            lines.append(
                f"samples {split:5s} guidance {guidance_scale:.0f} ({size}): "
                f"graded {verdict.graded.mean():.3f}  strict {verdict.strict.mean():.3f}"
            )
    return lines


def report_preview(pipe: StableDiffusion3Pipeline, preview: AutoencoderTiny, size: int, seed: int) -> list[str]:
    """Rank correlation of graded rewards between preview-decoded and fully decoded samples."""
    captions = evaluation_captions("test", size)
    latents = sample_images(pipe, captions, seed=seed, output_type="latent")
    full = verify(to_verifier_range(decode_latents(pipe.vae, latents)), captions).graded
    with torch.no_grad():
        quick = verify(to_verifier_range(preview.decode(latents).sample), captions).graded
    correlation = rank_correlation(torch.from_numpy(quick), torch.from_numpy(full))
    return [f"preview against full decode ({size} samples): rank correlation {correlation:.3f}"]


# ---------------------------------------------------------------- command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="stages to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="threads torch computes with; processes of stage flow")
    parser.add_argument("--pool_size", type=int, default=30_000, help="rendered training scenes")
    parser.add_argument("--vae_steps", type=int, default=2200)
    parser.add_argument("--vae_batch_size", type=int, default=32)
    parser.add_argument("--vae_lr", type=float, default=3e-3)
    parser.add_argument("--flow_steps", type=int, default=7800)
    parser.add_argument("--flow_batch_size", type=int, default=32, help="of each process")
    parser.add_argument("--flow_lr", type=float, default=2e-3)
    parser.add_argument("--preview_steps", type=int, default=1500)
    parser.add_argument("--preview_batch_size", type=int, default=32)
    parser.add_argument("--preview_lr", type=float, default=5e-3)
    parser.add_argument("--eval_size", type=int, default=1024, help="scenes and samples of each reported number")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the chosen stages; each reads what the stages before it left in `output_dir`."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    start, lines = time.perf_counter(), []
    pool = build_pool(args.pool_size, args.seed) if args.stages != ["report"] else None
    for stage in STAGES:
        if stage in args.stages:
            lines += run_stage(stage, args, pool)
    print("\n".join([*lines, f"all: {time.perf_counter() - start:.0f} s"]), flush=True)


def run_stage(stage: str, args: argparse.Namespace, pool: Pool | None) -> list[str]:
    """Run one stage and return its lines of the final table."""
    start = time.perf_counter()
    lines = {"vae": vae_stage, "flow": flow_stage, "preview": preview_stage, "report": report_stage}[stage](args, pool)
    return [*lines, f"stage {stage}: {time.perf_counter() - start:.0f} s"]


def load_vae(folder: Path) -> AutoencoderKL:
    """The trained autoencoder, without the name of the folder in its config: the pipeline is to be shipped."""
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    vae.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return vae.eval()


def vae_stage(args: argparse.Namespace, pool: Pool) -> list[str]:
    """Train the autoencoder."""
    vae = train_vae(pool, args.vae_steps, args.vae_batch_size, args.vae_lr, args.seed)
    vae.save_pretrained(args.output_dir / "vae")
    return report_vae(vae, args.eval_size, seed=args.seed + 1000)


def flow_stage(args: argparse.Namespace, pool: Pool) -> list[str]:
    """Train the denoiser and the text encoders on the autoencoder's latents, in one process per thread."""
    if args.threads == 1:
        flow_process(0, args, pool, None)
    else:
        # The network is too small for the threads of one process to help each other.
        with tempfile.TemporaryDirectory() as folder:
            spawn(flow_process, (args, pool, f"{folder}/store"), nprocs=args.threads)
    return []


def flow_process(rank: int, args: argparse.Namespace, pool: Pool, store: str | None) -> None:
    """One process of stage flow; the first one judges and saves."""
    torch.set_num_threads(1)
    if store is not None:
        dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=args.threads)
    pipe = make_pipeline(load_vae(args.output_dir / "vae"), args.seed)
    train_flow(pipe, pool, args.flow_steps, args.flow_batch_size, args.flow_lr, args.seed, args.output_dir)
    if store is not None:
        dist.destroy_process_group()


def preview_stage(args: argparse.Namespace, pool: Pool) -> list[str]:
    """Train the preview decoder on the autoencoder's latents."""
    vae = load_vae(args.output_dir / "vae")
    preview = train_preview(vae, pool, args.preview_steps, args.preview_batch_size, args.preview_lr, args.seed)
    preview.save_pretrained(args.output_dir / "preview_decoder")
    return []


def report_stage(args: argparse.Namespace, pool: Pool | None) -> list[str]:
    """Measure the pipeline and the preview decoder in `output_dir`."""
    pipe = load_pipeline(args.output_dir)
    preview = load_preview_decoder(args.output_dir / "preview_decoder")
    size_on_disk = sum(path.stat().st_size for path in args.output_dir.rglob("*.safetensors"))
    return [
        *report_samples(pipe, args.eval_size, seed=args.seed + 2000),
        *report_preview(pipe, preview, args.eval_size, seed=args.seed + 3000),
        f"safetensors: {size_on_disk / 1e6:.2f} MB",
    ]


if __name__ == "__main__":
    main()
