# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
What a pruning schedule costs: how much work it is, and what that comes to in FLOPs or seconds. Arithmetic only.

Counting is one thing and pricing another: [`WorkCount`] says how many network evaluations, decodes, reward calls and training
passes a rollout and its update are, exactly as the sampler and the trainer make them; a [`UnitCost`] says what one
of each costs, in any unit. Prices come from counting FLOPs ([`flops.unit_flops`]) or from measuring
([`calibration.measure_seconds`]).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields


SCHEDULE_FIELDS = ("num_expansions", "prune_steps", "prune_sizes")
"""What is chosen of a [`PruneSchedule`], with `prune_schedule="auto"`, while the rest follows from the configuration."""


@dataclass(frozen=True)
class PruneSchedule:
    """
    How the size of a group falls while it is denoised. Fields have the names of [`ProGRPOConfig`].

    Args:
        num_inference_steps (`int`): denoising steps, `T`.
        num_generations (`int`): survivors per prompt, which are trained on, `K`.
        num_expansions (`int`): trajectories started per prompt, `G_max`.
        prune_steps (`tuple[int, ...]`, *optional*): 0-based steps after which groups are pruned, increasing.
        prune_sizes (`tuple[int, ...]`, *optional*): group size after each of them, falling.

    Raises:
        ValueError: if there is not one size per step, or sizes do not fall from `num_expansions` to at least
            `num_generations`.
    """

    num_inference_steps: int
    num_generations: int
    num_expansions: int
    prune_steps: tuple[int, ...] = ()
    prune_sizes: tuple[int, ...] = ()

    def __post_init__(self):
        if len(self.prune_steps) != len(self.prune_sizes):
            raise ValueError(
                f"`prune_steps` is {list(self.prune_steps)} and `prune_sizes` {list(self.prune_sizes)}; give one size "
                "per step."
            )
        falling = [self.num_expansions, *self.prune_sizes]
        if any(after >= before for before, after in zip(falling, falling[1:])) or falling[-1] < self.num_generations:
            raise ValueError(
                f"group sizes {' -> '.join(map(str, falling))} do not fall to at least `num_generations` "
                f"{self.num_generations}; give falling sizes that end there or above."
            )

    @classmethod
    def plain(cls, num_inference_steps: int, size: int) -> PruneSchedule:
        """Plain GRPO: `size` trajectories per prompt, all of them trained on."""
        return cls(num_inference_steps, size, size)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Group sizes from the start to the selection that decides who is trained on."""
        alive = (self.num_expansions, *self.prune_sizes)
        return alive if alive[-1] == self.num_generations else (*alive, self.num_generations)

    @property
    def num_finished(self) -> int:
        """Trajectories per prompt that reach the end."""
        return (self.num_expansions, *self.prune_sizes)[-1]

    @property
    def trajectory_steps(self) -> int:
        """Denoising steps taken per prompt, over all trajectories."""
        return sum(self.alive())

    @property
    def num_previews(self) -> int:
        """Previews decoded and scored per prompt."""
        return sum((self.num_expansions, *self.prune_sizes)[:-1]) if self.prune_steps else 0

    @property
    def selects_on_finished(self) -> bool:
        """Whether the last selection is one on the true rewards of finished images (post-hoc)."""
        return self.num_finished > self.num_generations

    def in_words(self) -> str:
        """Sizes and where they change, e.g. `48 → 24 → 12 (after step 5, on the finished images)`."""
        pruned = [f"after step {step}" for step in self.prune_steps]
        pruned += ["on the finished images"] if self.selects_on_finished else []
        return " → ".join(map(str, self.sizes)) + (f" ({', '.join(pruned)})" if pruned else "")

    def alive(self) -> Iterator[int]:
        """Trajectories of a group that take each step."""
        size, prune_at = self.num_expansions, dict(zip(self.prune_steps, self.prune_sizes))
        for step in range(self.num_inference_steps):
            yield size
            size = prune_at.get(step, size)


@dataclass(frozen=True)
class UnitCost:
    """
    What one piece of work costs, all in one unit, for example FLOPs or seconds.

    Attributes:
        network (`float`): a network evaluation of one row; guidance is two of them.
        training (`float`): the same evaluation with its backward pass.
        decode (`float`): an image decoded by the VAE.
        preview (`float`): a preview decoded.
        reward (`float`): a finished image scored by one reward function.
        preview_reward (`float`): a preview scored by one reward function.
    """

    network: float
    training: float
    decode: float
    preview: float = 0.0
    reward: float = 0.0
    preview_reward: float = 0.0


@dataclass(frozen=True)
class PhaseCost:
    """
    The cost of a rollout and its update by phase, in the unit of the [`UnitCost`] it was made with. Phases are those of
    [`timing.PHASES`], but for the choice of a schedule.
    """

    denoise: float = 0.0
    preview: float = 0.0
    decode: float = 0.0
    reward: float = 0.0
    update: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class WorkCount:
    """
    The work of one rollout and of the update that follows, on one process. Numbers are whole unless some groups are
    audited, when they are means over many rollouts.

    Attributes:
        nfe (`float`): network evaluations of the rollout in rows; a row with classifier-free guidance counts 2.
        preview_decodes (`float`): previews decoded.
        decodes (`float`): finished images decoded.
        preview_reward_calls (`float`): previews scored, once per reward function.
        final_reward_calls (`float`): finished images scored, once per reward function.
        training_passes (`float`): forward and backward passes of the update in rows, counted as `nfe` is.
        reference_passes (`float`): forward passes for the KL to the reference, counted as `nfe` is.
    """

    nfe: float
    preview_decodes: float
    decodes: float
    preview_reward_calls: float
    final_reward_calls: float
    training_passes: float
    reference_passes: float = 0

    @classmethod
    def of(
        cls,
        schedule: PruneSchedule,
        *,
        num_prompts: int = 1,
        trained_steps: int | None = None,
        nfe_per_row: int = 1,
        num_rewards: int = 1,
        num_preview_rewards: int | None = None,
        num_iterations: int = 1,
        reference: bool = False,
        audited: float = 0,
    ) -> WorkCount:
        """
        Args:
            schedule ([`PruneSchedule`]): of every group.
            num_prompts (`int`, *optional*, defaults to 1): groups of the rollout.
            trained_steps (`int`, *optional*): denoising steps that are trained; all when unset.
            nfe_per_row (`int`, *optional*, defaults to 1): 2 with classifier-free guidance.
            num_rewards (`int`, *optional*, defaults to 1): reward functions, each called once a finished image.
            num_preview_rewards (`int`, *optional*): the same for previews; `num_rewards` when unset.
            num_iterations (`int`, *optional*, defaults to 1): passes over the rollout.
            reference (`bool`, *optional*, defaults to `False`): whether there is a KL term (`beta` above 0).
            audited (`float`, *optional*, defaults to 0): groups, on average over rollouts, whose pruned trajectories are
                finished all the same; previews are made of all their rows.
        """
        if num_preview_rewards is None:
            num_preview_rewards = num_rewards
        if trained_steps is None:
            trained_steps = schedule.num_inference_steps
        audited = audited if schedule.prune_steps else 0
        start, pruned = schedule.num_expansions, num_prompts - audited
        steps = pruned * schedule.trajectory_steps + audited * start * schedule.num_inference_steps
        previews = pruned * schedule.num_previews + audited * start * len(schedule.prune_steps)
        finished = pruned * schedule.num_finished + audited * start
        passes = num_prompts * schedule.num_generations * trained_steps * num_iterations * nfe_per_row
        return cls(
            nfe=steps * nfe_per_row,
            preview_decodes=previews,
            decodes=finished,
            preview_reward_calls=previews * num_preview_rewards,
            final_reward_calls=finished * num_rewards,
            training_passes=passes,
            reference_passes=passes if reference else 0,
        )

    @property
    def reward_calls(self) -> float:
        """Images scored, previews included, once per reward function; `SamplingCost.reward_calls` of a rollout."""
        return self.preview_reward_calls + self.final_reward_calls

    def cost(self, unit: UnitCost) -> PhaseCost:
        """The work at these prices, by phase."""
        return PhaseCost(
            denoise=self.nfe * unit.network,
            preview=self.preview_decodes * unit.preview,
            decode=self.decodes * unit.decode,
            reward=self.preview_reward_calls * unit.preview_reward + self.final_reward_calls * unit.reward,
            update=self.training_passes * unit.training + self.reference_passes * unit.network,
        )
