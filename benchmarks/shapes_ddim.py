# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
The embedded shapes model as a diffusion model: it predicts noise and is sampled with DDIM. No weight differs.

A rectified flow `x_f = (1 - t) x_0 + t eps` and a variance-preserving path `x = alpha x_0 + sigma eps` are the same up to a
scale: with `t = sigma / (alpha + sigma)`, `x_f = x / (alpha + sigma)`. So a network that knows the velocity `v = eps - x_0`
knows the noise, `eps = x_f + (1 - t) v`, whatever table of betas the path comes from.

```python
from shapes_ddim import load_shapes_ddim

trainer = ProGRPOTrainer(model=load_shapes_ddim(), ...)  # the family is found by the pipeline's class
```
"""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from trl_progrpo.families import StableDiffusion3Family, load_pipeline, register_family
from trl_progrpo.families.ddim_schedule import ddim_schedule
from trl_progrpo.tiny import model_path
from trl_progrpo.types import Schedule


FLOW_TIMESTEPS = 1000
"""What the flow network calls `t = 1`."""


class EpsilonTransformer(SD3Transformer2DModel):
    """
    A flow network that is asked for noise: latents of the variance-preserving path and timesteps of its table in, `eps` out.

    Attributes:
        alphas_cumprod (`torch.Tensor` of shape `(T,)`, fp32): `alpha**2` of every timestep; [`load_shapes_ddim`] sets it.
    """

    def forward(self, hidden_states: torch.Tensor, *, timestep: torch.Tensor, return_dict: bool = True, **kwargs):
        """As that of [`~diffusers.SD3Transformer2DModel`], with `timestep` `(B,)` as indices into the table."""
        alpha_squared = self.alphas_cumprod[timestep.long()].float().view(-1, 1, 1, 1)
        alpha, sigma = alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
        time = sigma / (alpha + sigma)
        # In fp32 around the network: near pure noise the clean sample magnifies every error of the prediction.
        latents = hidden_states.float() / (alpha + sigma)
        velocity = super().forward(
            latents.to(hidden_states.dtype), timestep=time.flatten() * FLOW_TIMESTEPS, return_dict=False, **kwargs
        )[0]
        noise = latents + (1 - time) * velocity
        return Transformer2DModelOutput(sample=noise) if return_dict else (noise,)


class ShapesDDIMPipeline(StableDiffusion3Pipeline):
    """The shapes pipeline with an [`EpsilonTransformer`] and a [`~diffusers.DDIMScheduler`]; called as its parent is."""


@register_family
class ShapesDDIMFamily(StableDiffusion3Family):
    """[`ShapesDDIMPipeline`]: the shapes model on a variance-preserving path, for the policy `"ddim"`."""

    pipeline_classes = ("ShapesDDIMPipeline",)
    policies = ("ddim",)

    def make_schedule(self, num_inference_steps: int) -> Schedule:
        return ddim_schedule(self.pipeline.scheduler, num_inference_steps)


def load_shapes_ddim(**scheduler_options) -> ShapesDDIMPipeline:
    """
    The embedded model as a diffusion pipeline, in fp32.

    Args:
        scheduler_options: for [`~diffusers.DDIMScheduler`]. The default is the table of DDPM (arXiv 2006.11239), which ends at
            `alpha = 0.006`, so that sampling starts where training did: from noise. Spacing is `"trailing"`, which begins
            there and takes any number of steps that divides 1000.
    """
    flow = load_pipeline("shapes")
    options = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
    scheduler = DDIMScheduler(**{**options, "clip_sample": False, **scheduler_options})
    transformer = EpsilonTransformer.from_pretrained(model_path(), subfolder="transformer")
    transformer.register_buffer("alphas_cumprod", scheduler.alphas_cumprod, persistent=False)
    pipeline = ShapesDDIMPipeline(**{**flow.components, "transformer": transformer, "scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
