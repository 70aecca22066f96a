# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The data that flows between families, policies, sampler and trainer. Knows torch and nothing else.

Letters in shapes: `P` prompts, `B` rows (trajectories), `T` denoising steps, `S` trained steps, `F` reward functions,
`*l` the latent dimensions of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch


LogProbReduction = Literal["mean", "sum"]


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`tensor` on `device`; a copy from the host to a device does not let the host wait for what the device is doing."""
    device = torch.device(device)
    # Back to the host it must wait, and MPS may read memory that is in other use by then.
    if tensor.device.type != "cpu" or device.type in ("cpu", "mps"):
        return tensor.to(device)
    # CUDA waits all the same unless the memory is pinned.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in CPU memory; coming from a CUDA device, in pinned memory, from which it goes back without a wait."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)


def pinned_like(tensor: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """`tensor`, in pinned memory if `source` is."""
    return tensor.pin_memory() if source.is_pinned() else tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """
    A discretised noise path `x_t = alpha_t * x_0 + sigma_t * eps`, read once from a diffusers scheduler.

    Step `i` goes from noise level `i` to `i + 1`; step 0 is the noisiest. Coefficients live on the CPU in float64, so
    that policies compute with plain floats: no host-device synchronisation and no rounding beyond the final fp32.

    Attributes:
        timesteps (`torch.Tensor` of shape `(T,)`): what the denoiser is given as time, in its own unit.
        alphas (`torch.Tensor` of shape `(T + 1,)`, float64): signal coefficients.
        sigmas (`torch.Tensor` of shape `(T + 1,)`, float64): noise coefficients.
        prediction_type (`str`): `"flow"` (velocity `eps - x_0`), `"epsilon"`, `"v_prediction"` or `"sample"`.

    Raises:
        ValueError: if coefficients are not one more than timesteps, or not finite.
    """

    timesteps: torch.Tensor
    alphas: torch.Tensor
    sigmas: torch.Tensor
    prediction_type: Literal["flow", "epsilon", "v_prediction", "sample"] = "flow"

    def __post_init__(self):
        steps = self.timesteps.shape[0]
        if self.alphas.shape != (steps + 1,) or self.sigmas.shape != (steps + 1,):
            raise ValueError(
                f"`alphas` and `sigmas` have shapes {tuple(self.alphas.shape)} and {tuple(self.sigmas.shape)}; with "
                f"{steps} timesteps both need {steps + 1} entries, the last for the clean end."
            )
        if not (self.alphas.isfinite().all() and self.sigmas.isfinite().all()):
            raise ValueError(
                f"the scheduler gives {steps} denoising step{'s' if steps > 1 else ''} noise levels that are no numbers; use "
                "more steps (`num_inference_steps`, in evaluation `eval_num_inference_steps`)."
            )
        object.__setattr__(self, "alphas", self.alphas.detach().to("cpu", torch.float64))
        object.__setattr__(self, "sigmas", self.sigmas.detach().to("cpu", torch.float64))

    @classmethod
    def flow(cls, timesteps: torch.Tensor, sigmas: torch.Tensor) -> Schedule:
        """Rectified flow: `alpha = 1 - sigma`; `sigmas` of shape `(T + 1,)` fall from at most 1, but for rounding, to 0."""
        sigmas = sigmas.detach().to("cpu", torch.float64)
        # Shifted in fp32, a 1 may come out as 1.0000001.
        sigmas = torch.where((sigmas - 1).abs() < 1e-6, 1.0, sigmas)
        return cls(timesteps, 1.0 - sigmas, sigmas, "flow")

    @property
    def num_steps(self) -> int:
        return self.timesteps.shape[0]

    def sigma(self, step_index: int) -> float:
        return self.sigmas[step_index].item()

    def alpha(self, step_index: int) -> float:
        return self.alphas[step_index].item()


@dataclass(frozen=True, eq=False)
class Transition:
    """
    The Gaussian over the next latents that a policy makes of one denoising step.

    Rollout and update use this same object, so a log-probability cannot mean two things.

    Attributes:
        mean (`torch.Tensor` of shape `(B, *l)`): fp32 (fp64 when the latents were fp64).
        std (`torch.Tensor`, 0-dimensional, CPU): the FULL standard deviation of the step, `|dt|` included. It depends
            on the schedule alone, never on the network.
        pred_original_sample (`torch.Tensor` of shape `(B, *l)`): the clean sample that the same network output
            projects to in one deterministic step; the latents of the preview.
        log_prob_reduction (`str`): `"mean"` over the latent dimensions (the field's convention, hence clip widths of
            1e-4) or `"sum"` (the true density).
    """

    mean: torch.Tensor
    std: torch.Tensor
    pred_original_sample: torch.Tensor
    log_prob_reduction: LogProbReduction = "mean"

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """`mean + std * noise`, in the mean's dtype; `noise` of shape `(B, *l)`, standard normal."""
        return self.mean + float(self.std) * noise.to(self.mean.dtype)

    def log_prob(self, next_latents: torch.Tensor) -> torch.Tensor:
        """
        Log-density of `next_latents` `(B, *l)` reduced over the latent dimensions to `(B,)`.

        `next_latents` is a constant (it is detached). Round it to the dtype it is stored in BEFORE calling this,
        otherwise the update cannot reproduce the value.

        Raises:
            ValueError: if `std` is 0: a deterministic step has no density.
        """
        std = self._positive_std("log_prob")
        z = (next_latents.detach().to(self.mean.dtype) - self.mean) / std
        return self._reduce(-0.5 * z.square() - (math.log(std) + 0.5 * math.log(2 * math.pi)))

    def kl(self, other: Transition) -> torch.Tensor:
        """
        KL(self || other) of shape `(B,)`: `(mean - other.mean)^2 / (2 std^2)`, reduced like `log_prob`.

        Raises:
            ValueError: if the two have different `std` (not the same step of the same policy) or `std` is 0.
        """
        std = self._positive_std("kl")
        if float(other.std) != std:
            raise ValueError(
                f"`kl` compares transitions of one step, but their std are {std:.6g} and {float(other.std):.6g}; "
                "build both with the same policy, schedule and step_index."
            )
        return self._reduce((self.mean - other.mean).square() / (2 * std**2))

    def _positive_std(self, name: str) -> float:
        std = float(self.std)
        if not std > 0:
            raise ValueError(
                f"`{name}` needs a stochastic step but `std` is {std:g}; raise noise_level (or eta), or leave this "
                "step out of the trained steps."
            )
        return std

    def _reduce(self, value: torch.Tensor) -> torch.Tensor:
        value = value.flatten(1)
        return value.mean(1) if self.log_prob_reduction == "mean" else value.sum(1)


@dataclass(frozen=True, eq=False)
class Conditioning:
    """
    What the denoiser is told about the prompts: tensors per PROMPT, stored once and never repeated per member.

    Attributes:
        positive (`dict[str, torch.Tensor]`): name -> tensor with leading dimension `P`.
        negative (`dict[str, torch.Tensor]`, *optional*): same names and shapes, for classifier-free guidance.
    """

    positive: dict[str, torch.Tensor]
    negative: dict[str, torch.Tensor] | None = None

    def __len__(self) -> int:
        return next(iter(self.positive.values())).shape[0]

    def rows(self, index: torch.Tensor, device: torch.device | str | None = None) -> Conditioning:
        """The conditioning of rows whose prompts are `index` `(B,)`, on `device`; where it is when unset."""

        def select(tensor: torch.Tensor) -> torch.Tensor:
            selected = tensor[to_device(index, tensor.device)]
            return selected if device is None else to_device(selected, device)

        return self.map(select)

    def to(self, *args, **kwargs) -> Conditioning:
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def map(self, function) -> Conditioning:
        def apply(tensors):
            return None if tensors is None else {name: function(tensor) for name, tensor in tensors.items()}

        return Conditioning(apply(self.positive), apply(self.negative))


@dataclass(frozen=True, eq=False)
class PruneRecord:
    """
    What one pruning checkpoint did to every group; kept for metrics, plots and audits.

    Attributes:
        step_index (`int`): the 0-based step after which rows were dropped; `T` for post-hoc selection on final rewards.
        prompt_index (`torch.Tensor` of shape `(n,)`): prompt of every row that was alive before.
        member (`torch.Tensor` of shape `(n,)`): slot of every such row in its group.
        rewards (`torch.Tensor` of shape `(n,)`, fp32): the (preview) rewards that decided.
        kept (`torch.Tensor` of shape `(n,)`, bool): which rows went on.
        final_rewards (`torch.Tensor` of shape `(n,)`, fp32, *optional*): of the same rows' finished images. Only audited
            groups have them, whose dropped rows were finished for comparison.
    """

    step_index: int
    prompt_index: torch.Tensor
    member: torch.Tensor
    rewards: torch.Tensor
    kept: torch.Tensor
    final_rewards: torch.Tensor | None = None

    @classmethod
    def join(cls, records: Sequence[PruneRecord]) -> PruneRecord:
        """One record of the same step of several sets of prompts."""
        columns = {name: torch.cat([getattr(r, name) for r in records]) for name in records[0]._columns()}
        return cls(records[0].step_index, **columns)

    def first_prompts(self, count: int) -> PruneRecord:
        """The rows of the first prompts."""
        rows = self.prompt_index < count
        return replace(self, **{name: getattr(self, name)[rows] for name in self._columns()})

    def _columns(self) -> list[str]:
        return [f.name for f in fields(self) if f.name != "step_index" and getattr(self, f.name) is not None]


@dataclass(frozen=True)
class SamplingCost:
    """
    Work done by a rollout, counted where it happens.

    Attributes:
        nfe (`int`): network evaluations in rows; a row with classifier-free guidance counts 2.
        decodes (`int`): images decoded by the VAE.
        preview_decodes (`int`): previews decoded (by the preview decoder, or the VAE when there is none).
        reward_calls (`int`): images scored, previews included, once per reward function.
    """

    nfe: int = 0
    decodes: int = 0
    preview_decodes: int = 0
    reward_calls: int = 0

    def __add__(self, other: SamplingCost) -> SamplingCost:
        return SamplingCost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, eq=False)
class Rollout:
    """
    Finished trajectories, one row each. `select` is the only way to prune, shuffle or split, so no tensor is forgotten.

    Attributes:
        prompt_index (`torch.Tensor` of shape `(B,)`, int64): which prompt of this rollout the row belongs to.
        member (`torch.Tensor` of shape `(B,)`, int64): slot in the group; fixes the row's seeds.
        latents (`torch.Tensor` of shape `(B, S + 1, *l)`): the latents before each trained step and after the last; in CPU
            memory where the sampler offloads them.
        step_indices (`tuple[int, ...]` of length `S`): the trained steps; consecutive.
        log_probs (`torch.Tensor` of shape `(B, S)`, fp32): of the stored next latents under the sampling policy.
        means (`torch.Tensor` of shape `(B, S, *l)`, *optional*): of the sampling policy at the trained steps, kept
            where `latents` are; see `keep_means` of the sampler.
        rewards (`torch.Tensor` of shape `(B,)`, fp32): weighted final reward.
        rewards_per_func (`torch.Tensor` of shape `(B, F)`, fp32): NaN where a function does not apply.
        advantages (`torch.Tensor` of shape `(B,)`, fp32, *optional*): set by the trainer; NaN in rows that it leaves out of
            the update, for want of a reward or of another row to compare with.
        images (`torch.Tensor` of shape `(B, 3, height, width)`, *optional*): final images in [0, 1].
        conditioning ([`Conditioning`]): per prompt, shared by all rows (not selected).
        schedule ([`Schedule`]): shared by all rows.
        prune_records (`tuple[PruneRecord, ...]`): one per checkpoint.
        audit_records (`tuple[PruneRecord, ...]`): one per checkpoint that prunes in mid-denoising, over ALL rows of the
            audited groups, with final rewards; `kept` means still alive after that checkpoint.
        cost ([`SamplingCost`]): what the whole rollout cost.
        rollout_index (`int`): which rollout of the run this is; with `first_slot` it fixes the seeds.
        first_slot (`int`): slot of prompt 0, counted over all ranks.
    """

    prompt_index: torch.Tensor
    member: torch.Tensor
    latents: torch.Tensor
    step_indices: tuple[int, ...]
    log_probs: torch.Tensor
    rewards: torch.Tensor
    rewards_per_func: torch.Tensor
    conditioning: Conditioning
    schedule: Schedule
    means: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    images: torch.Tensor | None = None
    prune_records: tuple[PruneRecord, ...] = ()
    audit_records: tuple[PruneRecord, ...] = ()
    cost: SamplingCost = field(default_factory=SamplingCost)
    rollout_index: int = 0
    first_slot: int = 0

    _ROW_FIELDS = (
        "prompt_index",
        "member",
        "latents",
        "means",
        "log_probs",
        "rewards",
        "rewards_per_func",
        "advantages",
        "images",
    )

    def __len__(self) -> int:
        return self.prompt_index.shape[0]

    def select(self, rows: torch.Tensor) -> Rollout:
        """The rollout with only `rows` `(b,)` (indices or a mask), in that order."""
        values = {name: getattr(self, name) for name in self._ROW_FIELDS}
        chosen = {name: pinned_like(v[rows.to(v.device)], v) for name, v in values.items() if v is not None}
        return replace(self, **chosen)

    def first_prompts(self, count: int) -> Rollout:
        """The rollout with only the rows, and records, of its first prompts."""
        records = {
            name: tuple(record.first_prompts(count) for record in getattr(self, name))
            for name in ("prune_records", "audit_records")
        }
        return replace(self.select(self.prompt_index < count), **records)

    @classmethod
    def join(cls, parts: Sequence[Rollout]) -> Rollout:
        """One rollout from those of several sets of its prompts, in that order."""
        rows = {name: [getattr(part, name) for part in parts] for name in cls._ROW_FIELDS}
        rows = {name: pinned_like(torch.cat(vs), vs[0]) for name, vs in rows.items() if vs[0] is not None}
        records = {}
        for name in ("prune_records", "audit_records"):
            # A part without an audited group has no audit records.
            several = [getattr(part, name) for part in parts if getattr(part, name)]
            records[name] = tuple(PruneRecord.join(one_step) for one_step in zip(*several))
        return replace(parts[0], **rows, **records, cost=sum((part.cost for part in parts), SamplingCost()))

    def replace(self, **changes: Any) -> Rollout:
        return replace(self, **changes)

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """The row tensors, for a checkpoint that falls inside a rollout."""
        values = {name: getattr(self, name) for name in self._ROW_FIELDS}
        return {name: value for name, value in values.items() if value is not None}
