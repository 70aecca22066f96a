# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a model family is: the questions the sampler and the trainer ask about a diffusers pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from ..registry import Registry
from ..types import Conditioning, Schedule


FAMILIES = Registry("model family", "trl_progrpo.families")
"""Families by the class name of the pipelines they serve, as it stands in `model_index.json`."""


class Family(ABC):
    """
    Answers questions about one diffusers pipeline; it owns no loop and draws no random number.

    With a noise-free policy the chain `init_latents -> (predict -> policy.step)* -> decode` equals `pipeline(...)`.

    Args:
        pipeline ([`~diffusers.DiffusionPipeline`]): the loaded pipeline.
        height (`int`, *optional*): image height in pixels, a multiple of `size_multiple`; the pipeline's own default
            when unset.
        width (`int`, *optional*): image width in pixels, likewise.
        guidance_scale (`float`, *optional*, defaults to 1.0): classifier-free guidance; above 1 every row costs two
            network evaluations. The same scale is used in rollout, update and evaluation.
        max_sequence_length (`int`, *optional*): token limit of the long text encoder, for families that have one.

    Class attributes:
        pipeline_classes (`tuple[str, ...]`): class names in `model_index.json` this family serves.
        denoiser_name (`str`): the pipeline's attribute that is trained.
        lora_target_modules (`tuple[str, ...]`): default LoRA targets.
        policies (`tuple[str, ...]`): names of the policies that fit, the default first.
        optional_components (`tuple[str, ...]`): components that may be missing from a checkpoint and are loaded as `None`.
        unused_parameters (`tuple[str, ...]`): regular expressions for the beginning of the names of weights that the denoiser
            has and whose output its forward pass does not use, so that they get no gradient.

        base_scheduler ([`~diffusers.SchedulerMixin`]): what the pipeline came with; families may put another in its place.

    Raises:
        ValueError: if height or width is not a positive multiple of `size_multiple` or above `max_size`, or guidance is below
            1.
    """

    pipeline_classes: ClassVar[tuple[str, ...]]
    denoiser_name: ClassVar[str] = "transformer"
    lora_target_modules: ClassVar[tuple[str, ...]]
    policies: ClassVar[tuple[str, ...]] = ("flow_sde", "flow_cps", "dance_sde")
    optional_components: ClassVar[tuple[str, ...]] = ()
    unused_parameters: ClassVar[tuple[str, ...]] = ()

    #: The denoiser, and a parameter of its dtype.
    _dtype_of: tuple[torch.nn.Module | None, torch.nn.Parameter | None] = (None, None)

    def __init__(
        self,
        pipeline: Any,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float = 1.0,
        max_sequence_length: int | None = None,
    ):
        self.pipeline = pipeline
        self.base_scheduler = pipeline.scheduler
        self.height = height or self.default_size
        self.width = width or self.default_size
        for name, value in (("height", self.height), ("width", self.width)):
            if value < 1 or value % self.size_multiple:
                nearest = max(self.size_multiple, round(value / self.size_multiple) * self.size_multiple)
                raise ValueError(
                    f"`{name}` is {value}, but {type(pipeline).__name__} makes images whose sides are multiples of "
                    f"{self.size_multiple}; use {nearest}."
                )
        # A pipeline whose own default is beyond it may still be asked for anything but images.
        for name, value, most in zip(("height", "width"), (height, width), self.max_size or ()):
            if value is not None and value > most:
                raise ValueError(
                    f"`{name}` is {value}, but the position table of this {type(self.denoiser).__name__} ends at {most} pixels; "
                    f"use at most {most}."
                )
        if not guidance_scale >= 1.0:
            raise ValueError(f"`guidance_scale` is {guidance_scale}; use 1 for no guidance, or a value above 1.")
        self.guidance_scale = guidance_scale
        self.max_sequence_length = max_sequence_length

    @classmethod
    def with_options(cls, pipeline: Any, options: Any) -> Family:
        """
        Make the family of a pipeline for a run, whose negative prompt it must heed.

        Args:
            pipeline ([`~diffusers.DiffusionPipeline`]): the loaded pipeline.
            options ([`ProGRPOConfig`] or alike): has `height`, `width`, `guidance_scale`, `max_sequence_length` and
                `negative_prompt`.

        Raises:
            ValueError: as the constructor and [`~Family.check_negative_prompt`].
        """
        family = cls(
            pipeline,
            height=options.height,
            width=options.width,
            guidance_scale=options.guidance_scale,
            max_sequence_length=options.max_sequence_length,
        )
        family.check_negative_prompt(options.negative_prompt)
        return family

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that is trained."""
        return getattr(self.pipeline, self.denoiser_name)

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's compute dtype: of its frozen base weights, not of an fp32 adapter on top of them."""
        # diffusers looks through all modules every time, which takes 16 ms at 2.5 billion parameters, and `predict` asks at
        # every call. A parameter that is cast stays the same object.
        denoiser, parameter = self._dtype_of
        if denoiser is not self.denoiser:
            denoiser, dtype = self.denoiser, self.denoiser.dtype
            parameter = next((p for p in denoiser.parameters() if p.dtype == dtype), None)
            if parameter is None:
                return dtype
            self._dtype_of = denoiser, parameter
        return parameter.dtype

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def size_multiple(self) -> int:
        """Sides of an image must be multiples of this many pixels."""
        return self.pipeline.vae_scale_factor * 2

    @property
    def max_size(self) -> tuple[int, int] | None:
        """Height and width in pixels beyond which the denoiser knows no positions; `None` where it computes them."""
        return None

    @property
    def why_no_negative_prompts(self) -> str | None:
        """Why the model ignores negative prompts, to follow "but"; `None` for one that takes them."""
        return None

    def check_negative_prompt(self, negative_prompt: str | None) -> None:
        """
        Check that a negative prompt would be heeded.

        Args:
            negative_prompt (`str`, *optional*): of a run.

        Raises:
            ValueError: if there is one, and the model ignores it.
        """
        if negative_prompt is not None and self.why_no_negative_prompts is not None:
            raise ValueError(
                f"`negative_prompt` is {negative_prompt!r}, but {self.why_no_negative_prompts}; leave it unset."
            )

    @property
    def default_size(self) -> int:
        """Side of the image the pipeline makes when it is not told, in pixels."""
        return self.pipeline.default_sample_size * self.pipeline.vae_scale_factor

    @property
    def pipeline_call_kwargs(self) -> dict[str, Any]:
        """Arguments with which `pipeline(prompt, **kwargs)` samples as this family does."""
        return {"height": self.height, "width": self.width, "guidance_scale": self.guidance_scale}

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self.guidance_scale > 1.0

    @property
    def nfe_per_row(self) -> int:
        """Network evaluations, in rows, that one `predict` costs per row."""
        return 2 if self.do_classifier_free_guidance else 1

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Conditioning:
        """Conditioning of `P` prompts, with the negative side only when guidance needs it (default: empty prompts)."""

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """
        Conditionings, each of some prompts, as one of all of them in that order: what `encode_prompts` gives for all at
        once. Families whose conditioning is as long as its longest prompt pad here.
        """
        try:
            return stack_conditionings(conditionings)
        except RuntimeError as error:
            raise ValueError(
                f"{type(self).__name__} encodes prompts of different lengths to tensors that do not concatenate "
                f"({error}); override `stack` and pad there, as ZImageFamily does."
            ) from error

    @property
    def text_encoders(self) -> dict[str, torch.nn.Module]:
        """The pipeline's text encoders by name; nothing but `encode_prompts` uses them."""
        found = {name: module for name, module in self.pipeline.components.items() if name.startswith("text_encoder")}
        return {name: module for name, module in found.items() if module is not None}

    @property
    def prompt_token_limit(self) -> int | None:
        """Tokens of a prompt beyond which `encode_prompts` cuts it off, in the units of `count_tokens`; `None`: no limit."""
        return self._longest_tokenizer()[1]

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt for the encoder that takes the most, template and special tokens included."""
        return len(self._longest_tokenizer()[0](prompt, verbose=False).input_ids)

    def _longest_tokenizer(self) -> tuple[Any, int | None]:
        """The tokenizer of the encoder that takes the most tokens, and their number."""
        limits = []
        for name, tokenizer in self.pipeline.components.items():
            if name.startswith("tokenizer") and tokenizer is not None:
                encoder = getattr(self.pipeline, name.replace("tokenizer", "text_encoder"), None) or tokenizer
                is_clip = type(encoder).__name__.startswith("CLIP")
                limit = tokenizer.model_max_length if is_clip else self.max_sequence_length
                limits.append((tokenizer, limit))
        return max(limits, key=lambda pair: pair[1] or 0, default=(None, None))

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one trajectory's latents at `height` x `width`."""

    def init_latents(self, noise: torch.Tensor) -> torch.Tensor:
        """Latents `(B, *latent_shape)` at step 0 from standard normal noise of the same shape."""
        return noise

    @abstractmethod
    def make_schedule(self, num_inference_steps: int) -> Schedule:
        """The noise path of `num_inference_steps` steps at this resolution, read from the pipeline's scheduler."""

    @abstractmethod
    def denoise(
        self,
        denoiser: torch.nn.Module,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        tensors: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """
        One call of the network without guidance.

        Args:
            denoiser (`torch.nn.Module`): the network, possibly wrapped (DDP, compiled).
            latents (`torch.Tensor` of shape `(B, *latent_shape)`): in the denoiser's dtype.
            timestep (`torch.Tensor`, 0-dimensional): entry of `Schedule.timesteps`.
            tensors (`dict[str, torch.Tensor]`): one side of a [`Conditioning`], per row.
        """

    def predict(
        self, denoiser: torch.nn.Module, latents: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """
        The model output `(B, *latent_shape)` for latents of any dtype, guidance included; at least fp32.

        Guidance magnifies the rounding of half precision, so outputs are combined in fp32, as those are that accelerate's
        mixed precision returns. Both sides go through the network in ONE call, in rollout and update alike: the batch
        layout changes low-order bits, and the ratio of the first update is to be 1.
        """
        latents = latents.to(self.dtype)
        if not self.do_classifier_free_guidance:
            return _full(self.denoise(denoiser, latents, timestep, conditioning.positive))
        both = {name: torch.cat([conditioning.negative[name], t]) for name, t in conditioning.positive.items()}
        outputs = self.denoise(denoiser, torch.cat([latents, latents]), timestep, both)
        unconditional, conditional = _full(outputs).chunk(2)
        return self.combine_guidance(unconditional, conditional)

    def combine_guidance(self, unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
        """Both sides of classifier-free guidance `(B, *latent_shape)` to one output, as the pipeline does it."""
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, height, width)` in [0, 1], fp32, of final latents `(B, *latent_shape)`."""
        return self.decode_spatial(self.spatial_latents(latents))

    @abstractmethod
    def decode_spatial(self, latents: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1], fp32, of latents `(B, channels, h, w)`, which may be smaller than the images in training."""

    def decode_preview(
        self, latents: torch.Tensor, decoder: torch.nn.Module | None = None, downscale: int = 1
    ) -> torch.Tensor:
        """
        Images of predicted clean latents `(B, *latent_shape)`, for previews.

        Args:
            latents (`torch.Tensor`): the predicted clean latents.
            decoder (`torch.nn.Module`, *optional*): an [`~diffusers.AutoencoderTiny`]; the VAE when unset.
            downscale (`int`, *optional*, defaults to 1): average over so many latents in each direction first, for images
                smaller by that factor.
        """
        spatial = self.spatial_latents(latents)
        if downscale > 1:
            spatial = torch.nn.functional.avg_pool2d(spatial, downscale)
        if decoder is None:
            return self.decode_spatial(spatial)
        return to_unit_range(decoder.decode(spatial.to(decoder.dtype), return_dict=False)[0])

    def spatial_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as `(B, channels, h, w)`, for decoders; families with packed latents unpack them here."""
        return latents

    def pipeline_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """What `pipeline(..., output_type="latent")` gives when its last latents are `latents` `(B, *latent_shape)`."""
        return latents


def _full(output: torch.Tensor) -> torch.Tensor:
    return output.to(torch.promote_types(output.dtype, torch.float32))


def stack_conditionings(
    conditionings: Sequence[Conditioning], join: Callable[[list[torch.Tensor]], torch.Tensor] = torch.cat
) -> Conditioning:
    """One conditioning of the prompts of all, whose tensors of each name and side are put together by `join`."""

    def joined(sides):
        return {name: join([side[name] for side in sides]) for name in sides[0]}

    positive = joined([conditioning.positive for conditioning in conditionings])
    if conditionings[0].negative is None:
        return Conditioning(positive)
    return Conditioning(positive, joined([conditioning.negative for conditioning in conditionings]))


def pad_and_cat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors `(P, L, ...)` of different `L`, filled up with zeros at the end of `L` and concatenated; `(P,)` as they are."""
    if tensors[0].ndim == 1:
        return torch.cat(list(tensors))
    length = max(tensor.shape[1] for tensor in tensors)
    padding = (0, 0) * (tensors[0].ndim - 2)
    return torch.cat([torch.nn.functional.pad(t, (*padding, 0, length - t.shape[1])) for t in tensors])


def chat_tokens(tokenizer: Any, prompt: str, **options: Any) -> int:
    """Tokens of a prompt in the chat template of its tokenizer, with the beginning of the answer."""
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    return len(tokenizer(text, verbose=False).input_ids)


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] of any dtype to fp32 in [0, 1], as diffusers' image processor does."""
    return (images.float() / 2 + 0.5).clamp(0, 1)


def register_family(cls: type[Family]) -> type[Family]:
    """Class decorator: makes the family known under each of its `pipeline_classes`."""
    for name in cls.pipeline_classes:
        FAMILIES.register(name)(cls)
    return cls
