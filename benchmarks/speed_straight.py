# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
What a careful user would write with diffusers and a loop: expand-and-prune GRPO for one model, as a contender of `speed.py`.

Nothing here is general, saved, logged, resumed, evaluated or checked; the noise comes from one generator, so that a picture
depends on everything that was drawn before it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from speed_turns import Turns
from speed_work import Setting, load_models, reward_of


class Flow:
    """Stable Diffusion 3 with the SDE of Flow-GRPO."""

    def __init__(self, pipe: DiffusionPipeline, prompts: list[str], steps: int, guidance: float, noise_level: float):
        self.pipe, self.network, self.noise_level = pipe, pipe.transformer, noise_level
        pipe.scheduler.set_timesteps(steps)
        self.timesteps, self.sigmas = pipe.scheduler.timesteps.to(pipe.device), pipe.scheduler.sigmas.tolist()
        self.embeds, _, self.pooled, _ = pipe.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=0
        )
        size = self.network.config.sample_size
        self.shape = (self.network.config.in_channels, size, size)

    def step(
        self, x: torch.Tensor, i: int, prompt: torch.Tensor, noisy: bool
    ) -> tuple[torch.Tensor, float, torch.Tensor]:
        """Mean and standard deviation of the next latents, and the predicted clean ones."""
        v = self.network(
            hidden_states=x.to(self.network.dtype),
            timestep=self.timesteps[i].expand(len(x)),
            encoder_hidden_states=self.embeds[prompt],
            pooled_projections=self.pooled[prompt],
            return_dict=False,
        )[0].float()
        s, s_next = self.sigmas[i], self.sigmas[i + 1]
        dt = s_next - s
        g2 = self.noise_level**2 * s / (1 - (self.sigmas[1] if s == 1 else s)) if noisy else 0.0
        mean = x * (1 + g2 * dt / (2 * s)) + v * ((1 + g2 * (1 - s) / (2 * s)) * dt)
        return mean, math.sqrt(g2 * -dt), x - s * v

    def decode(self, x: torch.Tensor, decoder: torch.nn.Module | None = None) -> torch.Tensor:
        """Images in [0, 1]."""
        if decoder is not None:
            images = decoder.decode(x.to(decoder.dtype), return_dict=False)[0]
        else:
            vae = self.pipe.vae
            x = x.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
            images = vae.decode(x, return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)


class Diffusion:
    """Stable Diffusion 1 with stochastic DDIM, as in DDPO, and classifier-free guidance."""

    def __init__(self, pipe: DiffusionPipeline, prompts: list[str], steps: int, guidance: float, noise_level: float):
        self.pipe, self.network, self.guidance = pipe, pipe.unet, guidance
        scheduler = pipe.scheduler
        scheduler.set_timesteps(steps)
        self.timesteps = scheduler.timesteps.to(pipe.device)
        before = [t - scheduler.config.num_train_timesteps // steps for t in scheduler.timesteps.tolist()]
        final = scheduler.final_alpha_cumprod.item()
        self.alphas = [scheduler.alphas_cumprod[t].item() for t in scheduler.timesteps.tolist()]
        self.alphas_next = [scheduler.alphas_cumprod[t].item() if t >= 0 else final for t in before]
        embeds, empty = pipe.encode_prompt(prompts, pipe.device, 1, guidance > 1)
        self.embeds, self.empty = embeds, empty
        size = self.network.config.sample_size
        self.shape = (self.network.config.in_channels, size, size)

    def step(
        self, x: torch.Tensor, i: int, prompt: torch.Tensor, noisy: bool
    ) -> tuple[torch.Tensor, float, torch.Tensor]:
        """Mean and standard deviation of the next latents, and the predicted clean ones."""
        embeds = self.embeds[prompt]
        given = x.to(self.network.dtype)
        if self.guidance > 1:
            given, embeds = torch.cat([given, given]), torch.cat([self.empty[prompt], embeds])
        eps = self.network(given, self.timesteps[i], encoder_hidden_states=embeds, return_dict=False)[0].float()
        if self.guidance > 1:
            without, within = eps.chunk(2)
            eps = without + self.guidance * (within - without)
        a, a_next = self.alphas[i], self.alphas_next[i]
        std = math.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next)) if noisy else 0.0
        clean = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        return math.sqrt(a_next) * clean + math.sqrt(1 - a_next - std**2) * eps, std, clean

    def decode(self, x: torch.Tensor, decoder: torch.nn.Module | None = None) -> torch.Tensor:
        """Images in [0, 1]."""
        vae = self.pipe.vae
        images = vae.decode(x.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)


def largest_variance(rewards: torch.Tensor, k: int) -> torch.Tensor:
    """The `k` members of a group whose rewards vary most: some of the lowest and some of the highest."""
    order = rewards.argsort()
    splits = [torch.cat([order[:low], order[len(order) - (k - low) :]]) for low in range(k + 1)]
    return max(splits, key=lambda kept: rewards[kept].var(correction=0).item()).sort().values


def log_density(x: torch.Tensor, mean: torch.Tensor, std: float) -> torch.Tensor:
    """Of a normal distribution, as a mean over the latent dimensions."""
    return (-0.5 * ((x - mean) / std).square() - math.log(std) - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


@torch.no_grad()
def sample(model: Flow | Diffusion, setting: Setting, preview_decoder, reward: Callable) -> dict[str, torch.Tensor]:
    """The survivors' latents before and after every trained step, log-densities, prompts and rewards."""
    device = model.pipe.device
    prompt = torch.arange(len(setting.prompts), device=device).repeat_interleave(setting.num_expansions)
    x = torch.randn(len(prompt), *model.shape, device=device)
    path, log_probs = [x], []
    prune_at = dict(zip(setting.prune_steps, setting.prune_sizes))

    def decoded(latents, decoder):
        return torch.cat([model.decode(part, decoder) for part in latents.split(setting.rollout_batch_size)])

    def scores(images):
        rewards = reward(prompts=[setting.prompts[p] for p in prompt.tolist()], images=images)
        return torch.tensor(rewards).view(len(setting.prompts), -1)

    for i in range(setting.num_inference_steps):
        noisy = i < setting.trained_steps
        next_x, densities, clean = [], [], []
        for rows in torch.arange(len(x), device=device).split(setting.rollout_batch_size):
            mean, std, predicted = model.step(x[rows], i, prompt[rows], noisy)
            if noisy:
                next_x.append(mean + std * torch.randn_like(mean))
                densities.append(log_density(next_x[-1], mean, std))
            else:
                next_x.append(mean)
            clean.append(predicted)
        x = torch.cat(next_x)
        if noisy:
            path.append(x)
            log_probs.append(torch.cat(densities))
        if i in prune_at:
            rewards = scores(decoded(torch.cat(clean), preview_decoder))
            kept = [largest_variance(group, prune_at[i]) + n * len(group) for n, group in enumerate(rewards)]
            kept = torch.cat(kept).to(device)
            prompt, x = prompt[kept], x[kept]
            path, log_probs = [p[kept] for p in path], [p[kept] for p in log_probs]
    rewards = scores(decoded(x, None))
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    return {
        "prompt": prompt,
        "path": torch.stack(path, 1),
        "log_probs": torch.stack(log_probs, 1),
        "advantages": advantages.flatten().to(device),
    }


def update(model: Flow | Diffusion, setting: Setting, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> None:
    """The clipped policy gradient over all trained steps."""
    parameters = optimizer.param_groups[0]["params"]
    batches = torch.randperm(len(batch["prompt"])).to(model.pipe.device).split(setting.train_batch_size)
    for number, rows in enumerate(batches, 1):
        advantages = batch["advantages"][rows]
        for s in range(setting.trained_steps):
            with torch.autocast(setting.device, torch.bfloat16, enabled=setting.dtype == "bfloat16"):
                mean, std, _ = model.step(batch["path"][rows, s], s, batch["prompt"][rows], True)
            log_prob = log_density(batch["path"][rows, s + 1], mean, std)
            ratio = (log_prob - batch["log_probs"][rows, s]).exp()
            loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - 1e-4, 1 + 1e-4)).mean()
            (loss / setting.trained_steps / setting.accumulated_batches).backward()
        if number % setting.accumulated_batches == 0:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()


def make(setting: Setting) -> tuple[Flow | Diffusion, torch.nn.Module | None, torch.optim.Optimizer]:
    """Model with a LoRA, decoder of previews, and optimiser."""
    pipe, preview_decoder, lora = load_models(setting)
    kind = Flow if setting.model == "shapes" else Diffusion
    with torch.no_grad():
        model = kind(pipe, setting.prompts, setting.num_inference_steps, setting.guidance_scale, setting.noise_level)
    for part in (model.network, pipe.vae):
        part.requires_grad_(False)
    model.network.add_adapter(lora)
    parameters = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return model, preview_decoder, torch.optim.AdamW(parameters, lr=setting.learning_rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--setting", type=json.loads, required=True)
    setting = Setting(**parser.parse_args().setting)
    torch.set_num_threads(setting.threads)
    model, preview_decoder, optimizer = make(setting)
    turns = Turns(setting.device)
    for _ in range(setting.turns):
        turns.begin()
        model.network.eval()
        with torch.autocast(setting.device, torch.bfloat16, enabled=setting.dtype == "bfloat16"):
            batch = sample(model, setting, preview_decoder, reward_of(setting))
        turns.sampled()
        model.network.train()
        update(model, setting, optimizer, batch)
    turns.end()


if __name__ == "__main__":
    main()
