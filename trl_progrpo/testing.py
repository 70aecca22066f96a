# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Contract checkers for what other packages add: model families, reward functions and pruning rules.

Each one raises an `AssertionError` with one sentence for the first broken promise, and returns what it measured. They
need no test framework; call them in a test of your own:

```python
def test_my_family():
    check_family(make_tiny_pipeline)
```
"""

from __future__ import annotations

import copy
import inspect
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig

from .adapters import adapters_disabled, add_adapter, default_lora_config, save_adapter, trainable_parameters
from .families import Family, family_class
from .isolation import isolated
from .policies import POLICIES, Policy
from .pruning import PRUNING_RULES
from .rewards import resolve_reward, reward_name, row_checker, to_pil
from .rewards.calls import accepted_keywords, begin_call, wanted_arguments
from .sampler import ExpandPruneSampler
from .seeds import INITIAL_NOISE, row_noise
from .types import Conditioning, Rollout, Schedule


PROMPTS = ("a red circle", "two blue squares and a triangle")

LOG_PROB_ATOL = 1e-6
"""Largest difference of a log-probability in fp32 that is computed again, at the same batch shape or in float64."""


@dataclass(frozen=True)
class FamilyReport:
    """
    The largest absolute differences that [`check_family`] met.

    Attributes:
        family (`str`): name of the family's class.
        latents_difference (`float`): final latents, noise-free sampler against `pipeline(...)`.
        image_difference (`float`): final images in [0, 1], likewise.
        stack_difference (`float`): network output, prompts encoded together against one by one and stacked.
        prompt_effect (`float`): latents with the conditioning of another prompt; if it is as small as the differences
            above, they say nothing about the conditioning.
        normal_difference (`float`): log-probabilities against `torch.distributions.Normal` in float64.
        log_prob_difference (`float`): log-probabilities of the rollout against those of the update, one row per call.
        batched_log_prob_difference (`float`): likewise, when pruning changed the batch shape in between.
        pruned_latents_difference (`float`): latents of survivors against a rollout without pruning, all rows per call; 0
            at one row per call.
        lora_difference (`float`): images with the trained adapter against a stock pipeline that loaded the saved one.
        lora_effect (`float`): images with the adapter against images without it.
    """

    family: str
    latents_difference: float = 0.0
    image_difference: float = 0.0
    stack_difference: float = 0.0
    prompt_effect: float = 0.0
    normal_difference: float = 0.0
    log_prob_difference: float = 0.0
    batched_log_prob_difference: float = 0.0
    pruned_latents_difference: float = 0.0
    lora_difference: float = 0.0
    lora_effect: float = 0.0


@isolated()
def check_family(
    pipeline: DiffusionPipeline | Callable[[], DiffusionPipeline],
    *,
    heights_widths: Sequence[tuple[int, int]] | None = None,
    num_inference_steps: Sequence[int] = (2, 4),
    guidance_scales: Sequence[float] = (1.0, 5.0),
    prompts: Sequence[str] = PROMPTS,
    max_sequence_length: int | None = None,
    lora_config: LoraConfig | None = None,
    atol: float = 1e-4,
) -> FamilyReport:
    """
    Checks that the registered family of a pipeline keeps the promises of [`~families.Family`].

    A pipeline with random weights and few channels is enough, and takes seconds. What is checked: the family is found by
    the pipeline's class name; sizes; conditioning; the schedule; the noise-free sampler gives the latents and images of
    stock `pipeline(...)`; network evaluations are counted as they happen; log-probabilities are those of a normal
    distribution and the same in rollout and update; pruning leaves the survivors as they were; images and previews have
    the shape and range of images; an adapter learns, and a stock pipeline loads it.

    Args:
        pipeline ([`~diffusers.DiffusionPipeline`] or `Callable`): a pipeline in fp32 (which is copied), or a function that
            returns a new one with the same weights at every call.
        heights_widths (`Sequence[tuple[int, int]]`, *optional*): image sizes; when unset the pipeline's own size and one that
            is not square.
        num_inference_steps (`Sequence[int]`, *optional*, defaults to `(2, 4)`): step counts.
        guidance_scales (`Sequence[float]`, *optional*, defaults to `(1.0, 5.0)`): guidance scales.
        prompts (`Sequence[str]`, *optional*): at least two different prompts, better of different lengths.
        max_sequence_length (`int`, *optional*): given to the family.
        lora_config ([`~peft.LoraConfig`], *optional*): the adapter; the package's default when unset.
        atol (`float`, *optional*, defaults to 1e-4): tolerance of latents and images; where rows share a network call, of
            log-probabilities times the step's standard deviation, as of the mean that they are taken at.

    Returns:
        [`FamilyReport`]: the measured differences.

    Raises:
        AssertionError: for the first promise that is broken.
    """
    make = (lambda: copy.deepcopy(pipeline)) if isinstance(pipeline, DiffusionPipeline) else pipeline
    stock = make()
    cls = _find_family(stock)
    kwargs = {"max_sequence_length": max_sequence_length}
    prompts = list(prompts)
    _require(len(set(prompts)) > 1, "give at least two different prompts.")
    plain = cls(stock, **kwargs)
    _check_sizes(cls, plain)
    if heights_widths is None:
        heights_widths = ((plain.height, plain.width), (plain.height + plain.size_multiple, plain.width))

    report: dict[str, float] = {}
    for height, width in heights_widths:
        for scale in guidance_scales:
            family = cls(stock, height=height, width=width, guidance_scale=scale, **kwargs)
            conditioning = _check_conditioning(family, prompts)
            for steps in num_inference_steps:
                _check_schedule(family, family.make_schedule(steps), steps)
                _check_parity(family, conditioning, prompts, steps, atol, report)
    steps = max(2, *num_inference_steps)
    _check_stack(family, conditioning, prompts, atol, report)
    _check_prompts_matter(family, conditioning, prompts, steps, atol, report)
    for name in cls.policies:
        _check_policy(family, POLICIES.get(name)(), conditioning, prompts, steps, atol, report)
    config = copy.deepcopy(lora_config) or default_lora_config(family)
    _check_lora(family, make, config, prompts, max(2, min(num_inference_steps)), atol, report)
    return FamilyReport(cls.__name__, **report)


def _find_family(pipeline: DiffusionPipeline) -> type[Family]:
    try:
        cls = family_class(pipeline)
    except ValueError as error:
        raise AssertionError(str(error)) from error
    name = type(pipeline).__name__
    _require(name in cls.pipeline_classes, f"{cls.__name__} was found for {name}, but `pipeline_classes` lacks it.")
    denoiser = getattr(pipeline, cls.denoiser_name, None)
    _require(
        isinstance(denoiser, torch.nn.Module),
        f"`{cls.__name__}.denoiser_name` is {cls.denoiser_name!r}, but the pipeline's is {denoiser!r}, not a network.",
    )
    _require(denoiser.dtype == torch.float32, f"the denoiser is in {denoiser.dtype}; check a pipeline in fp32.")
    unknown = [policy for policy in cls.policies if policy not in POLICIES.names()]
    _require(cls.policies and not unknown, f"`{cls.__name__}.policies` is {cls.policies}; known: {POLICIES.names()}.")
    return cls


def _check_sizes(cls: type[Family], family: Family) -> None:
    if family.size_multiple == 1:
        return
    for side in ("height", "width"):
        wrong = {side: getattr(family, side) + 1}
        try:
            cls(family.pipeline, **wrong)
        except ValueError:
            continue
        raise AssertionError(
            f"{cls.__name__} accepts {wrong}, which is no multiple of `size_multiple` = {family.size_multiple}."
        )


def _check_conditioning(family: Family, prompts: list[str]) -> Conditioning:
    name = type(family).__name__
    conditioning = family.encode_prompts(prompts)
    variants = [conditioning]
    if family.do_classifier_free_guidance:
        variants.append(family.encode_prompts(prompts, [f"no {prompt}" for prompt in prompts]))
    for variant in variants:
        for key, tensor in variant.positive.items():
            _require(
                tensor.shape[0] == len(prompts),
                f"`{name}.encode_prompts` gives {key!r} of shape {tuple(tensor.shape)} for {len(prompts)} prompts; "
                "the first dimension is the prompts.",
            )
        _require(
            (variant.negative is not None) == family.do_classifier_free_guidance,
            f"`{name}.encode_prompts` must give a negative side exactly when guidance (here "
            f"{family.guidance_scale}) needs one.",
        )
        if variant.negative is not None:
            shapes = [{k: tuple(t.shape) for k, t in side.items()} for side in (variant.positive, variant.negative)]
            _require(
                shapes[0] == shapes[1], f"`{name}.encode_prompts` gives shapes {shapes[0]} and negative {shapes[1]}."
            )
    return conditioning


@torch.no_grad()
def _check_stack(family: Family, conditioning: Conditioning, prompts: list[str], atol, report) -> None:
    """Prompts are encoded one by one in training."""
    name = type(family).__name__
    stacked = family.stack([family.encode_prompts([prompt]) for prompt in prompts])
    _require(len(stacked) == len(prompts), f"`{name}.stack` makes {len(stacked)} prompts of {len(prompts)}.")
    noise = row_noise(family.latent_shape, 0, 0, range(len(prompts)), [0] * len(prompts), INITIAL_NOISE)
    latents, timestep = family.init_latents(noise.to(family.device)), family.make_schedule(2).timesteps[0]
    together, alone = (
        family.predict(family.denoiser, latents, timestep.to(latents.device), told) for told in (conditioning, stacked)
    )
    difference = _record(report, "stack_difference", alone, together)
    _require(
        difference <= atol,
        f"prompts that `{name}.encode_prompts` encodes one by one and `stack` puts together change the network's output by "
        f"{difference:.3g}.",
    )


def _check_schedule(family: Family, schedule: Schedule, steps: int) -> None:
    name = f"`{type(family).__name__}.make_schedule({steps})`"
    _require(schedule.num_steps == steps, f"{name} has {schedule.num_steps} steps.")
    alphas, sigmas = schedule.alphas, schedule.sigmas
    _require(bool(alphas.isfinite().all() and sigmas.isfinite().all()), f"{name} is not finite: {schedule}.")
    _require(
        bool((sigmas.diff() <= 0).all() and (alphas.diff() >= 0).all() and sigmas[0] > sigmas[-1] >= 0),
        f"{name} must go from noise to image, but has sigmas {sigmas.tolist()} and alphas {alphas.tolist()}.",
    )
    is_flow = schedule.prediction_type == "flow"
    total = alphas + sigmas if is_flow else alphas.square() + sigmas.square()
    _require(
        bool((total - 1).abs().max() < 1e-6),
        f"{name} predicts {schedule.prediction_type!r}, whose {'alpha + sigma' if is_flow else 'alpha^2 + sigma^2'} is 1, "
        f"but here {total.tolist()}.",
    )
    again = family.make_schedule(steps)
    _require(
        torch.equal(again.sigmas, sigmas) and torch.equal(again.timesteps, schedule.timesteps),
        f"{name} differs at its second call.",
    )
    for policy in family.policies:
        try:
            POLICIES.get(policy)().stochastic_steps(schedule)
        except ValueError as error:
            raise AssertionError(f"`{type(family).__name__}.policies` names {policy!r}, but {error}") from error


def _check_parity(family, conditioning, prompts, steps, atol, report) -> None:
    name = type(family).__name__
    where = f"at {family.height}x{family.width}, {steps} steps and guidance {family.guidance_scale}"
    with _counted_rows(family.denoiser) as counted:
        rollout = _noise_free(family, prompts, steps, conditioning)
    _require(
        counted[0] == rollout.cost.nfe,
        f"`{name}.nfe_per_row` counts {rollout.cost.nfe} network rows, but {counted[0]} went through the denoiser {where}.",
    )
    latents = rollout.latents[:, -1]
    noise = row_noise(family.latent_shape, 0, 0, range(len(prompts)), [0] * len(prompts), INITIAL_NOISE)
    start = family.init_latents(noise.to(family.device))
    _require(
        start.shape == latents.shape == (len(prompts), *family.latent_shape),
        f"`{name}.latent_shape` is {family.latent_shape}, but latents go from {tuple(start.shape)} to {tuple(latents.shape)}.",
    )
    _require(
        abs(start.std().item() - noise.std().item()) < 1e-3,
        f"`{name}.init_latents` makes noise of std {noise.std():.4g} into {start.std():.4g}; a schedule starts at std 1.",
    )
    _check_images(family, rollout.images, f"`{name}.decode`")
    _check_images(family, family.decode_preview(latents, None), f"`{name}.decode_preview`")
    spatial = family.spatial_latents(latents)
    _require(
        spatial.ndim == 4 and len(spatial) == len(latents),
        f"`{name}.spatial_latents` gives {tuple(spatial.shape)}; decoders take (B, channels, h, w).",
    )
    expected = _stock(family, prompts, steps, start, "latent")
    returned = family.pipeline_latents(latents)
    _require(
        expected.shape == returned.shape,
        f"`{name}.pipeline_latents` gives {tuple(returned.shape)}, but the pipeline's latents are {tuple(expected.shape)} "
        f"{where}.",
    )
    difference = _record(report, "latents_difference", returned, expected)
    _require(
        difference <= atol,
        f"the noise-free sampler's latents differ from `pipeline(...)` by {difference:.3g} {where}.",
    )
    difference = _record(report, "image_difference", rollout.images, _stock(family, prompts, steps, start, "pt"))
    _require(
        difference <= atol, f"the noise-free sampler's images differ from `pipeline(...)` by {difference:.3g} {where}."
    )


def _check_images(family: Family, images: torch.Tensor, name: str) -> None:
    _require(
        images.ndim == 4 and images.shape[1:] == (3, family.height, family.width) and images.dtype == torch.float32,
        f"{name} gives {images.dtype} of shape {tuple(images.shape)}; images are fp32 (B, 3, {family.height}, {family.width}).",
    )
    low, high = images.min().item(), images.max().item()
    _require(0 <= low <= high <= 1, f"{name} gives values from {low:.3g} to {high:.3g}; images are in [0, 1].")


def _check_prompts_matter(family, conditioning, prompts, steps, atol, report) -> None:
    rollouts = [
        _noise_free(family, prompts, steps, told)
        for told in (conditioning, conditioning.map(lambda tensor: tensor.flip(0)))
    ]
    effect = _record(report, "prompt_effect", rollouts[0].latents, rollouts[1].latents)
    _require(
        effect > 10 * atol,
        f"the conditioning of another prompt changes the latents by {effect:.3g} only, so this pipeline cannot show that "
        "prompts are encoded right; give its text encoders or cross-attention larger weights, or a smaller `atol`.",
    )


def _check_policy(family, policy, conditioning, prompts, steps, atol, report) -> None:
    name = f"with policy {policy!r}"
    _require(
        policy.stochastic_steps(family.make_schedule(steps)),
        f"none of {steps} steps carries noise {name}; give more steps.",
    )
    for rows_per_call in (1, None):
        every, survivors = (
            _sampler(family, policy, steps, rollout_batch_size=rows_per_call, num_expansions=3, **groups).rollout(
                family.denoiser, prompts, conditioning=conditioning
            )
            for groups in ({"num_generations": 3}, {"num_generations": 1, "prune_steps": [0], "prune_sizes": [2]})
        )
        again, normal = _log_probs_again(family, policy, survivors, rows_per_call)
        difference = _record(report, "normal_difference", again, normal)
        _require(
            difference <= LOG_PROB_ATOL,
            f"log-probabilities {name} differ from `torch.distributions.Normal` by {difference:.3g}.",
        )
        key = "log_prob_difference" if rows_per_call else "batched_log_prob_difference"
        difference = _record(report, key, again, survivors.log_probs)
        if not rows_per_call:
            # A mean that is off by `atol` moves the log-probability by `atol` over the step's deviation.
            stds = again.new_tensor([policy.std(survivors.schedule, step) for step in survivors.step_indices])
            difference = ((again - survivors.log_probs).abs() * stds.clamp(max=1)).max().item()
        _require(
            difference <= (LOG_PROB_ATOL if rows_per_call else atol),
            f"log-probabilities {name} differ between rollout and update by {difference:.3g}: the first ratio is not 1.",
        )
        unpruned = every.latents[survivors.prompt_index * 3 + survivors.member]
        if rows_per_call:
            _require(
                torch.equal(survivors.latents, unpruned),
                f"pruning changed the trajectories of survivors {name}; `predict` must treat rows independently.",
            )
        else:
            difference = _record(report, "pruned_latents_difference", survivors.latents, unpruned)
            _require(difference <= atol, f"pruning changed the latents of survivors {name} by {difference:.3g}.")


@torch.no_grad()
def _log_probs_again(family, policy, rollout, rows_per_call) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities `(B, S)` as the update computes them, and by `torch.distributions`."""
    again, normal = torch.empty_like(rollout.log_probs), torch.empty(rollout.log_probs.shape, dtype=torch.float64)
    for rows in torch.arange(len(rollout)).split(rows_per_call or len(rollout)):
        conditioning = rollout.conditioning.rows(rollout.prompt_index[rows])
        for s, step in enumerate(rollout.step_indices):
            latents, following = rollout.latents[rows, s], rollout.latents[rows, s + 1]
            timestep = rollout.schedule.timesteps[step].to(latents.device)
            output = family.predict(family.denoiser, latents, timestep, conditioning)
            transition = policy.step(output, latents, rollout.schedule, step)
            again[rows, s] = transition.log_prob(following)
            density = torch.distributions.Normal(transition.mean.double(), transition.std.to(latents.device))
            density = density.log_prob(following.double()).flatten(1)
            normal[rows, s] = (density.mean(1) if policy.log_prob_reduction == "mean" else density.sum(1)).cpu()
    return again, normal


def _check_lora(family, make, config, prompts, steps, atol, report) -> None:
    name = type(family).__name__
    base = _noise_free(family, prompts, steps)
    add_adapter(family, config)
    parameters = trainable_parameters(family.denoiser)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.device)
    _check_gradient(family, base, parameters)
    trained = _noise_free(family, prompts, steps)
    effect = _record(report, "lora_effect", trained.images, base.images)
    _require(effect > 10 * atol, f"a random adapter on {config.target_modules} changes images by {effect:.3g} only.")
    with adapters_disabled(family.denoiser):
        reference = _noise_free(family, prompts, steps)
    _require(
        torch.equal(reference.latents, base.latents), "with its adapter disabled the denoiser is not the base model."
    )

    fresh = make()
    with tempfile.TemporaryDirectory() as directory:
        save_adapter(family, directory)
        fresh.load_lora_weights(directory)
    # A family may put its own scheduler on the pipeline.
    loaded = type(family)(
        fresh,
        height=family.height,
        width=family.width,
        guidance_scale=family.guidance_scale,
        max_sequence_length=family.max_sequence_length,
    )
    noise = row_noise(family.latent_shape, 0, 0, range(len(prompts)), [0] * len(prompts), INITIAL_NOISE)
    images = _stock(loaded, prompts, steps, loaded.init_latents(noise.to(loaded.device)), "pt")
    difference = _record(report, "lora_difference", images, trained.images)
    _require(
        difference <= atol,
        f"a stock {type(fresh).__name__} that loaded the adapter {name} saved makes images that differ by {difference:.3g}.",
    )


def _check_gradient(family: Family, rollout: Rollout, parameters: list[torch.nn.Parameter]) -> None:
    policy = POLICIES.get(family.policies[0])()
    step = policy.stochastic_steps(rollout.schedule)[0]
    latents = rollout.latents[:, 0]
    conditioning = rollout.conditioning.rows(rollout.prompt_index)
    timestep = rollout.schedule.timesteps[step].to(latents.device)
    with torch.enable_grad():
        output = family.predict(family.denoiser, latents, timestep, conditioning)
        policy.step(output, latents, rollout.schedule, step).log_prob(torch.zeros_like(latents)).sum().backward()
    without = sum(parameter.grad is None or not parameter.grad.any() for parameter in parameters)
    _require(
        without < len(parameters), f"the log-probability has no gradient in the adapter of {type(family).__name__}."
    )


def _sampler(family: Family, policy: Policy, steps: int, **kwargs: Any) -> ExpandPruneSampler:
    def brightness(prompts, images, columns, preview):
        return images.mean((1, 2, 3)).cpu()[:, None]

    return ExpandPruneSampler(
        family, policy, brightness, reward_weights=torch.ones(1), num_inference_steps=steps, **kwargs
    )


def _noise_free(family, prompts, steps, conditioning=None) -> Rollout:
    sampler = _sampler(family, POLICIES.get(family.policies[0])().ode(), steps, num_generations=1)
    return sampler.rollout(family.denoiser, prompts, conditioning=conditioning)


def _stock(family: Family, prompts, steps, latents, output_type) -> torch.Tensor:
    call = {**family.pipeline_call_kwargs, "num_inference_steps": steps, "output_type": output_type}
    # A copy of the list: some pipelines write their chat template into the one they are given.
    return family.pipeline(prompt=list(prompts), latents=latents.clone(), **call).images


@contextmanager
def _counted_rows(denoiser: torch.nn.Module) -> Iterator[list[int]]:
    """A list whose only entry is the number of rows that went through the network inside the block."""
    counted = [0]

    def count(module, args, output):
        while isinstance(output, tuple):
            output = output[0]
        # Networks of variable-size inputs return a list of samples.
        counted[0] += len(output if isinstance(output, (list, torch.Tensor)) else output[0])

    hook = denoiser.register_forward_hook(count)
    try:
        yield counted
    finally:
        hook.remove()


def _record(report: dict[str, float], name: str, value: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference, kept in `report` if it is the largest so far; infinite where a value is NaN."""
    difference = (value.cpu().double() - expected.cpu().double()).abs().nan_to_num(nan=torch.inf).max().item()
    report[name] = max(report.get(name, 0.0), difference)
    return difference


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)


@dataclass(frozen=True)
class RewardReport:
    """
    What [`check_reward_func`] measured.

    Attributes:
        name (`str`): the name under which the function is logged.
        image_type (`str`): `"pil"` or `"pt"`.
        deterministic (`bool`): whether two calls gave the same.
        batch_difference (`float`): largest difference of an image's reward alone and in a batch.
        seconds_per_image (`float`): in a batch.
    """

    name: str
    image_type: str
    deterministic: bool
    batch_difference: float
    seconds_per_image: float


@isolated()
def check_reward_func(
    func: Callable[..., list[float | None]] | str,
    prompts: Sequence[str] | None = None,
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    image_size: int = 64,
    atol: float = 1e-4,
) -> RewardReport:
    """
    Checks that a reward function keeps the promises of [`~rewards.RewardFunc`], and that its `check_row`, if it has one, passes
    all of `prompts` and `columns`.

    It is called with one image and with several (random pixels), as PIL images or as a tensor as it declares, for previews
    and for finished images, with columns it does not know: it must return one finite number or `None` per image, leave its
    arguments as they are, and give the same reward to the same images. A function that is random says so with the
    attribute `deterministic = False`; then neither repetition nor batches are compared.

    Args:
        func (`Callable` or `str`): the function, or a name as in `reward_funcs`.
        prompts (`Sequence[str]`, *optional*): at least two prompts that make sense to it.
        columns (`Mapping[str, Sequence]`, *optional*): dataset columns it needs, one entry per prompt.
        image_size (`int`, *optional*, defaults to 64): side of the images in pixels.
        atol (`float`, *optional*, defaults to 1e-4): tolerance between an image alone and in a batch.

    Returns:
        [`RewardReport`]: the measurements.

    Raises:
        AssertionError: for the first promise that is broken.
    """
    func = resolve_reward(func)
    name, image_type = reward_name(func), getattr(func, "image_type", "pil")
    prompts = list(prompts or ("a red circle", "two blue squares", "a green triangle"))
    columns = {**(columns or {}), "column_of_somebody_else": [{"index": i} for i in range(len(prompts))]}
    _require(image_type in ("pil", "pt"), f"reward function `{name}` declares image_type {image_type!r}.")
    _require(len(prompts) > 1, "give at least two prompts.")
    parameters = inspect.signature(func).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        missing = [argument for argument in ("prompts", "images") if argument not in parameters]
        _require(not missing, f"reward function `{name}` must accept the keyword `{' and '.join(missing)}`.")
    check_row = row_checker(name, func, columns)
    missing = wanted_arguments(getattr(func, "check_row", lambda: None), {"prompt", *columns})
    _require(
        not missing, f"`check_row` of reward `{name}` has the parameter `{', '.join(missing)}`, which it is not given."
    )
    for index, prompt in enumerate(prompts):
        fault = check_row(prompt, {key: values[index] for key, values in columns.items()})
        _require(fault is None, str(fault))
    generator = torch.Generator().manual_seed(0)
    # Multiples of 1/255, so that both kinds of image hold the same.
    pixels = torch.randint(0, 256, (len(prompts), 3, image_size, image_size), generator=generator).float() / 255

    def call(rows: slice, preview: bool = False) -> list[float]:
        arguments = {
            "prompts": prompts[rows],
            "images": pixels[rows].clone() if image_type == "pt" else to_pil(pixels[rows]),
            **accepted_keywords(
                func, {**{key: list(values)[rows] for key, values in columns.items()}, "preview": preview}
            ),
        }
        before = copy.deepcopy(arguments)
        values = func(**arguments)
        try:
            # A coroutine is awaited as in training.
            values = begin_call(name, lambda **_: values, prompts[rows], None, {}, None)()
        except ValueError as error:
            raise AssertionError(str(error)) from error
        for key, value in arguments.items():
            same = torch.equal(value, before[key]) if isinstance(value, torch.Tensor) else value == before[key]
            _require(same, f"reward function `{name}` changes its argument `{key}`; other functions get it too.")
        return values

    everything = slice(0, len(prompts))
    first = call(everything)
    started = time.perf_counter()
    second = call(everything)
    seconds = (time.perf_counter() - started) / len(prompts)
    call(everything, preview=True)
    deterministic = _apart(first, second) == 0
    alone = [call(slice(i, i + 1))[0] for i in range(len(prompts))]
    batch_difference = _apart(first, alone)
    if getattr(func, "deterministic", True):
        _require(
            deterministic,
            f"reward function `{name}` gave the same images other rewards at its second call; if it is random on purpose, set "
            f"`{name}.deterministic = False`.",
        )
        _require(
            batch_difference <= atol,
            f"reward function `{name}` gives an image a reward that is {batch_difference:.3g} off when it comes alone; which "
            "images share a batch is an accident, so score each by itself.",
        )
    return RewardReport(name, image_type, deterministic, batch_difference, seconds)


def _apart(first: list[float], second: list[float]) -> float:
    """Largest absolute difference of two lists of rewards, where NaN (not applicable) equals NaN only."""
    apart = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
    both = torch.tensor(first).isnan() & torch.tensor(second).isnan()
    return apart.abs().masked_fill(both, 0.0).nan_to_num(nan=torch.inf).max().item()


@dataclass(frozen=True)
class PrunerReport:
    """
    What [`check_pruner`] measured; none of it is a promise.

    Attributes:
        random (`bool`): whether another generator gives another choice.
        shift_invariant (`bool`): whether adding 1000 to all rewards leaves the choice as it is.
        groups_independent (`bool`): whether every group is pruned as if it were alone.
    """

    random: bool
    shift_invariant: bool
    groups_independent: bool


@isolated()
def check_pruner(rule: Callable[..., torch.Tensor] | str) -> PrunerReport:
    """
    Checks that a pruning rule keeps the promises that [`trl_progrpo.pruning`] lists.

    Args:
        rule (`Callable` or `str`): `(rewards (P, n), k, *, generator=None) -> indices (P, k)`, or the name of one.

    Returns:
        [`PrunerReport`]: properties that differ between good rules.

    Raises:
        AssertionError: for the first promise that is broken.
    """
    rule = PRUNING_RULES.get(rule) if isinstance(rule, str) else rule
    name = getattr(rule, "__name__", repr(rule))
    draw = torch.Generator().manual_seed(0)

    def call(rewards: torch.Tensor, k: int, seed: int = 0) -> torch.Tensor:
        before = rewards.clone()
        kept = rule(rewards, k, generator=torch.Generator().manual_seed(seed))
        where = f"pruning rule `{name}` with rewards of shape {tuple(rewards.shape)} and k = {k}"
        _require(torch.equal(rewards, before), f"{where} changes the rewards it is given.")
        _require(
            isinstance(kept, torch.Tensor) and kept.dtype == torch.int64 and kept.shape == (len(rewards), k),
            f"{where} must return int64 indices of shape {(len(rewards), k)}, not {kept!r}.",
        )
        _require(
            bool((kept.diff(dim=1) > 0).all() and kept.min() >= 0 and kept.max() < rewards.shape[1]),
            f"{where} must return distinct members of each group, ascending, not {kept.tolist()}.",
        )
        return kept

    for groups, n in ((1, 1), (1, 2), (3, 5), (4, 24)):
        spread = torch.randn(groups, n, generator=draw)
        for rewards in (spread, torch.zeros(groups, n), torch.arange(groups * n).view(groups, n)):
            for k in {1, n // 2 or 1, n - 1 or 1, n}:
                kept = call(rewards, k)
                _require(
                    torch.equal(kept, call(rewards, k)),
                    f"pruning rule `{name}` chose {kept.tolist()} and then other members with an equal `generator`; draw "
                    "all randomness from it.",
                )
    rewards = torch.randn(4, 24, generator=draw, dtype=torch.float64)
    for k in (0, 25):
        _require_refusal(name, lambda k=k: rule(rewards, k), f"k = {k} for groups of 24")
    for bad in (torch.nan, torch.inf):
        spoiled = rewards.clone()
        spoiled[2, 3] = bad
        _require_refusal(name, lambda spoiled=spoiled: rule(spoiled, 12), f"a reward of {bad}")
    kept = call(rewards, 12)
    return PrunerReport(
        random=not all(torch.equal(kept, call(rewards, 12, seed)) for seed in range(1, 4)),
        shift_invariant=torch.equal(kept, call(rewards + 1000, 12)),
        groups_independent=torch.equal(kept, torch.cat([call(group[None], 12) for group in rewards])),
    )


def _require_refusal(name: str, call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"pruning rule `{name}` accepts {what}; raise a ValueError.")
