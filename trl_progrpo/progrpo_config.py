# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Arguments of [`ProGRPOTrainer`]."""

from __future__ import annotations

import math
import operator
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch

from ._trl import BaseConfig
from .arithmetic import without_effect
from .geometry import PLACEMENTS, Geometry
from .inherited import (
    check_choices,
    check_dicts,
    check_keywords,
    check_numbers,
    check_optimizer_runs,
    follow_the_reward,
    take_trackers,
    use_one_device,
    watches_a_metric,
)
from .options import option
from .policies import POLICIES
from .pruning import PRUNING_RULES
from .rewards import ON_REWARD_ERROR
from .windows import window_steps


_BLOCK = 2**12
"""Bytes that a disk must take to count as one that is not full, which takes an empty file all the same."""

_PATHS = (
    "output_dir", "prompt_cache_dir", "preview_decoder", "resume_from_checkpoint", "deepspeed", "fsdp_config",
    "accelerator_config",
)  # fmt: skip
"""Fields that may be files or folders here."""


@dataclass
class ProGRPOConfig(BaseConfig):
    r"""
    Configuration of [`ProGRPOTrainer`]. Only what is specific to it is listed; everything of
    [`~transformers.TrainingArguments`] applies, with other defaults where they are given below.

    The arithmetic of one rollout: each device trains up to `per_device_train_batch_size * steps_per_generation` trajectories,
    which hold so many groups of `num_generations`; each prompt starts `num_expansions` trajectories. None of these numbers need
    divide another, see [`~ProGRPOConfig.geometry`].

    `torch_compile` compiles the denoiser in place, for rollout and update alike.

    > Parameters of the model

    Parameters:
        model_init_kwargs (`dict` or `str`, *optional*):
            Keyword arguments for `DiffusionPipeline.from_pretrained`, used when `model` is a string.
        height, width (`int`, *optional*):
            Image size in pixels; the pipeline's default when unset.
        max_sequence_length (`int`, *optional*):
            Token limit of the long text encoder of families that have one; the family's default when unset.
        prompt_cache_dir (`str`, *optional*):
            Folder for encoded prompts, one file each, that later runs and other processes use too. Unset: CPU memory.
            A prompt is encoded by itself, and once a run unless the latest 4 GiB in memory do not hold it.
        drop_text_encoders (`bool`, *optional*, defaults to `False`):
            Encode the prompts of all datasets before training, then remove the text encoders from memory. Other prompts
            are refused from then on.

        vae_slicing (`bool`, *optional*, defaults to `False`):
            Decode one image at a time to save memory.
        vae_tiling (`bool`, *optional*, defaults to `False`):
            Decode images tile by tile to save memory.

    > Parameters of the data

        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Dataset column that holds the prompts. All other columns are handed to the reward functions.

    > Parameters of the rollout

        num_generations (`int`, *optional*, defaults to `12`):
            Trajectories per prompt that are trained on, the paper's K. At least 2.
        num_expansions (`int`, *optional*):
            Trajectories started per prompt, the paper's G_max. Unset: `num_generations`, which is plain GRPO. Larger
            without `prune_steps`: all are finished and the best subset is chosen by the true rewards (post-hoc).
        prune_steps (`list[int]`, *optional*):
            0-based denoising steps after which groups are pruned, increasing, e.g. `[5, 7]`.
        prune_sizes (`list[int]`, *optional*):
            Group size after each of them, falling, at least `num_generations`, e.g. `[24, 12]`.
        prune_schedule (`str`, *optional*):
            `"auto"` chooses `num_expansions`, `prune_steps` and `prune_sizes` by measurement: groups of training prompts are
            sampled in full, with previews at every step, and the schedule is taken that gives most learning signal per
            second on this machine. `num_expansions` is then the most trajectories that may be started per prompt.
        prune_schedule_interval (`int`, *optional*, defaults to `50`):
            With `"auto"`, rollouts between two choices. 0: chosen at the start only.
        prune_schedule_groups (`int`, *optional*, defaults to `8`):
            With `"auto"`, groups that are sampled for each choice, on all devices together; at least 2.
        pruning_rule (`str`, *optional*, defaults to `"ovf"`):
            `"ovf"` (largest reward variance), `"top_bottom"`, `"top_k"`, `"random"`, `"none"`, an entry point or a dotted
            path.
        preview_decoder (`str`, *optional*):
            Folder or Hub name of an `AutoencoderTiny` that decodes previews; the pipeline's VAE when unset. For the
            embedded model `"shapes"` names the one that ships with it.
        preview_downscale (`int`, *optional*, defaults to `1`):
            Decode previews from latents averaged over so many in each direction: images smaller by that factor, for the
            VAE as well as for a `preview_decoder`. The preview rewards must bear small images.
        preview_batch_size (`int`, *optional*):
            Previews per decoder call; `decode_batch_size` when unset.
        audit_fraction (`float`, *optional*, defaults to `0.05`):
            Share of the groups whose pruned trajectories are finished all the same, to compare previews with final
            rewards and pruning with chance (`audit/*`). They are not trained on. 0 switches audits off.
        rollout_waves (`int`, *optional*, defaults to `1`):
            Sets the prompts of a rollout are split into. With 2 or more the rewards of one are computed in a thread while
            another denoises; for rewards on other machines or on idle cores. Batches of other sizes round otherwise.
        policy (`str`, *optional*):
            `"flow_sde"`, `"flow_cps"`, `"dance_sde"` for flow models, `"ddim"` for diffusion models; the family's
            default when unset.
        noise_level (`float`, *optional*, defaults to `0.7`):
            Noise of flow policies, above 0 (0 has no density to train on), and at most 1 with `"flow_cps"`.
        eta (`float`, *optional*, defaults to `1.0`):
            Noise of the DDIM policy, in (0, 1].
        num_inference_steps (`int`, *optional*, defaults to `10`):
            Denoising steps of a rollout, at least 2: the last one carries no noise to train on.
        guidance_scale (`float`, *optional*, defaults to `1.0`):
            Classifier-free guidance in rollout, update and evaluation, at least 1. 1 is off and costs one network call a
            step instead of two. Guidance-distilled models (FLUX.1-dev, FLUX.2-dev) take it as an input, in one call.
        negative_prompt (`str`, *optional*):
            Negative prompt for guidance; the empty prompt when unset. Guidance-distilled models have none.
        rollout_batch_size (`int`, *optional*):
            Rows per network call in rollouts; `per_device_train_batch_size` when unset.
        decode_batch_size (`int`, *optional*):
            Images per decoder call; `rollout_batch_size` when unset.
        offload_rollout (`bool`, *optional*, defaults to `False`):
            Keep the latents of trained steps, and the encoded prompts of a rollout, in pinned CPU memory: in the update each
            micro-batch is brought to the device when it is trained, in both phases the prompts of a network call when it is
            made.
        sde_window (`str`, *optional*):
            Train only a window of consecutive steps; the others run without noise. `"fixed"`, `"sliding"` (MixGRPO) or
            `"random"` (Flow-GRPO-Fast). Unset: all steps that carry noise are trained.
        sde_window_size (`int`, *optional*):
            Steps in the window; all from `sde_window_start` on when unset.
        sde_window_start (`int`, *optional*, defaults to `0`):
            First step the window may hold.
        sde_window_interval (`int`, *optional*, defaults to `1`):
            Rollouts between two moves of a sliding window.
        train_timestep_fraction (`float`, *optional*, defaults to `1.0`):
            Share of the noisy steps that is trained: the first ones, at least one. The others keep their noise. With
            `step_weighting` the last ones weigh next to nothing and cost as much as the first.
        steps_per_generation (`int`, *optional*):
            Micro-batches per rollout, a multiple of `gradient_accumulation_steps`, which is also the default: one
            optimiser update per rollout and pass. 2 times that: two updates.
        prompts_per_rollout (`int`, *optional*):
            Prompts of a rollout over all devices, at least one a device with `"rank-local"`. Unset: as many whole groups as
            the micro-batches of the devices hold. Where the survivors leave micro-batches uneven, rows of weight zero fill
            them up.
        group_placement (`str`, *optional*, defaults to `"rank-local"`):
            `"rank-local"`: whole groups on one device, so that pruning needs no communication. `"spread"`: every group on all
            devices, for fewer prompts than devices or groups too large for one; at every checkpoint preview rewards go round and
            surviving latents move, so that every device goes on with as many. Seeds, survivors and updates are the same.

    > Parameters of the update

        per_device_train_batch_size (`int`, *optional*, defaults to `12`):
            Trajectories per micro-batch at most, one group of the default size.
        learning_rate (`float`, *optional*, defaults to `3e-4`):
            Initial learning rate of the optimiser.
        num_iterations (`int`, *optional*, defaults to `1`):
            Passes over each rollout, the μ of GRPO.
        beta (`float`, *optional*, defaults to `0.0`):
            Weight of the KL to the reference policy (the adapter switched off). Flow-GRPO's KL omits the step size: for
            the same strength, this `beta` is `|dt|` times the one used there.
        epsilon (`float`, *optional*, defaults to `1e-4`):
            Clip width of the ratio. Small because log-probabilities are means over the latent dimensions. With one
            optimiser update per rollout the ratio is exactly 1 and nothing is clipped.
        epsilon_high (`float`, *optional*):
            Upper clip width; `epsilon` when unset.
        adv_clip_max (`float`, *optional*, defaults to `5.0`):
            Advantages are clipped to plus or minus this; `None` does not clip.
        scale_rewards (`str`, *optional*, defaults to `"group"`):
            Divide advantages by the standard deviation of the survivors of the `"group"`, of the whole `"batch"` (the
            papers' "global std"), or `"none"`.
        loss_type (`str`, *optional*, defaults to `"grpo"`):
            `"grpo"`, the clipped surrogate, or `"grpo_guard"`, with the ratio normalisation of GRPO-Guard (arXiv
            2510.22319): centred ratios of equal spread at every step, and a policy loss divided by the step size. Its clip
            widths are of the order of 1e-6.
        step_weighting (`float`, *optional*, defaults to `0.0`):
            Loss weights of the denoising steps proportional to `std ** step_weighting`. 0 is the papers' loss; 1 or 2
            takes weight from the last steps, whose gradients are large and carry little signal.
        log_prob_reduction (`str`, *optional*, defaults to `"mean"`):
            `"mean"` or `"sum"` over latent dimensions.
        reward_weights (`list[float]`, *optional*):
            One weight per reward function; all 1 when unset.
        preview_reward_weights (`list[float]`, *optional*):
            The same for `preview_reward_funcs`; all 1 when unset.
        on_reward_error (`str`, *optional*, defaults to `"raise"`):
            What follows when a reward function raises, takes longer than `reward_timeout`, or returns something else than
            one finite number or `None` per image. `"raise"` stops the run, on all processes, with a checkpoint
            where there is one process. `"skip"` leaves the images
            that have no score out of their groups, and a group with fewer than 2 left out of the update;
            `reward_errors/*` and `frac_groups_left_out` count them. `"retry"` calls again, `reward_max_retries` times,
            and then stops.
        reward_timeout (`float`, *optional*):
            Seconds that one call of a reward function may take; any time when unset.
        reward_max_retries (`int`, *optional*, defaults to 3):
            Further calls with `on_reward_error="retry"`, after 1, 2, 4, ... seconds.
        multi_objective_aggregation (`str`, *optional*, defaults to `"sum_then_normalize"`):
            How several rewards become one advantage: `"sum_then_normalize"` weights, sums and then normalises as
            `scale_rewards` says; `"normalize_then_sum"` (GDPO, arXiv 2601.05242) normalises each in its group first, and the
            sum over the batch. Pruning looks at the weighted sum either way.
        ema_decay (`float`, *optional*):
            Decay of an exponential moving average of the trained weights, in (0, 1). When set, evaluation runs on
            the average and `save_model` writes it; checkpoints also keep the raw weights to resume from.
        ema_update_interval (`int`, *optional*, defaults to `1`):
            Optimiser updates between two updates of the average.

    > Parameters of evaluation and logging

        eval_num_inference_steps (`int`, *optional*):
            Denoising steps in evaluation, which samples without noise; `num_inference_steps` when unset.
        eval_use_ema (`bool`, *optional*, defaults to `True`):
            With `ema_decay` or a schedule-free `optim`, evaluate the averaged weights; `False` evaluates those in training. What
            is saved is the same.
        num_validation_prompts (`int`, *optional*, defaults to `4`):
            Fixed prompts, the first of the evaluation set, whose images before and during training go to the trackers
            in `report_to` and to the model card. 0: none.
        log_images_steps (`int`, *optional*):
            Optimiser steps between two sets of pictures for the trackers. Unset: ten sets over a run. Nothing is drawn
            without `wandb`, `trackio` or `tensorboard` in `report_to`.
        log_completions (`bool`, *optional*, defaults to `False`):
            Print a table of prompts, and the rewards and advantages of their survivors, at every logging step.
        num_completions_to_print (`int`, *optional*):
            Survivors in that table, group by group, each from the highest reward down. Unset: those of one group.

    Raises:
        ValueError: for a value out of its range, or values that do not go together; the message names the field, the value
            and the cure.
    """

    _VALID_DICT_FIELDS = BaseConfig._VALID_DICT_FIELDS + ["model_init_kwargs"]

    # Defaults that differ from TRL's
    per_device_train_batch_size: int = option(
        12, "Trajectories per micro-batch that are trained on, on each device.", resume="order"
    )
    learning_rate: float = option(3e-4, "Initial learning rate of the optimiser.", resume="optimizer")
    lr_scheduler_type: str = option("constant", "Learning rate schedule.", resume="schedule")
    gradient_checkpointing: bool | None = option(
        None, "Trade compute for memory in the denoiser's backward pass; off if unset."
    )
    remove_unused_columns: bool = option(
        False, "Must stay False: further dataset columns go to the reward functions.", resume="constant"
    )
    bf16: bool | None = option(
        None, "bf16 mixed precision. If not set, on where the accelerator has it and fp16 is off.", resume="rollout"
    )

    # Model
    model_init_kwargs: dict | str | None = option(
        None, "Keyword arguments for `DiffusionPipeline.from_pretrained`, as JSON."
    )
    height: int | None = option(None, "Image height in pixels; the pipeline's default if unset.", resume="rollout")
    width: int | None = option(None, "Image width in pixels; the pipeline's default if unset.", resume="rollout")
    max_sequence_length: int | None = option(
        None, "Token limit of the long text encoder, for families that have one.", resume="rollout"
    )

    prompt_cache_dir: str | None = option(
        None, "Folder for encoded prompts, for this and later runs; CPU memory if unset."
    )
    drop_text_encoders: bool = option(
        False, "Encode the prompts of all datasets first, then remove the text encoders from memory."
    )

    vae_slicing: bool = option(False, "Decode one image at a time to save memory.", resume="next")
    vae_tiling: bool = option(False, "Decode images tile by tile to save memory.", resume="next")

    # Data
    prompt_column: str = option("prompt", "Dataset column that holds the prompts.", resume="rollout")

    # Rollout
    num_generations: int = option(
        12, "Trajectories per prompt that are trained on (K of the paper), at least 2.", resume="order"
    )
    num_expansions: int | None = option(
        None,
        "Trajectories started per prompt (G_max of the paper). Unset: num_generations, plain GRPO.",
        resume="next",
    )
    prune_steps: list[int] | None = option(
        None, "0-based denoising steps after which groups are pruned, e.g. 5 7.", resume="next"
    )
    prune_sizes: list[int] | None = option(None, "Group size after each prune step, e.g. 24 12.", resume="next")
    prune_schedule: str | None = option(
        None, "auto: choose expansions, prune steps and sizes by measurement, within num_expansions.", resume="next"
    )
    prune_schedule_interval: int = option(
        50, "Rollouts between two choices of prune_schedule auto; 0: only at the start.", resume="next"
    )
    prune_schedule_groups: int = option(
        8, "Groups sampled in full for each choice of prune_schedule auto, at least 2.", resume="next"
    )
    pruning_rule: str = option("ovf", "ovf, top_bottom, top_k, random, none, or a dotted path.", resume="next")
    preview_decoder: str | None = option(
        None, "Folder or Hub name of an AutoencoderTiny for previews; the VAE if unset.", resume="next"
    )
    preview_downscale: int = option(1, "Decode previews smaller by this factor in each direction.", resume="next")
    preview_batch_size: int | None = option(
        None, "Previews per decoder call; decode_batch_size if unset.", resume="next"
    )
    audit_fraction: float = option(
        0.05, "Share of groups finished unpruned to judge previews and pruning; 0 is off.", resume="next"
    )
    rollout_waves: int = option(
        1, "Sets of prompts that take turns, so that rewards run beside sampling.", resume="next"
    )
    policy: str | None = option(
        None, "flow_sde, flow_cps, dance_sde or ddim; the model family's default if unset.", resume="rollout"
    )
    noise_level: float = option(0.7, "Noise of flow policies, above 0.", resume="rollout")
    eta: float = option(1.0, "Noise of the DDIM policy, above 0 and at most 1.", resume="rollout")
    num_inference_steps: int = option(10, "Denoising steps of a rollout.", resume="rollout")
    guidance_scale: float = option(
        1.0, "Classifier-free guidance in rollout, update and evaluation; 1 is off.", resume="rollout"
    )
    negative_prompt: str | None = option(None, "Negative prompt for guidance.", resume="rollout")
    rollout_batch_size: int | None = option(
        None, "Rows per network call in rollouts; per_device_train_batch_size if unset.", resume="next"
    )
    decode_batch_size: int | None = option(
        None, "Images per decoder call; rollout_batch_size if unset.", resume="next"
    )
    offload_rollout: bool = option(
        False, "Keep stored latents and encoded prompts in pinned CPU memory.", resume="next"
    )
    sde_window: str | None = option(
        None, "Train only a window of steps: fixed, sliding or random; all steps if unset.", resume="rollout"
    )
    sde_window_size: int | None = option(None, "Steps in the window; all if unset.", resume="rollout")
    sde_window_start: int = option(0, "First step the window may hold.", resume="rollout")
    sde_window_interval: int = option(1, "Rollouts between two moves of a sliding window.", resume="rollout")
    train_timestep_fraction: float = option(
        1.0, "Share of the noisy steps that is trained, the first ones.", resume="rollout"
    )
    steps_per_generation: int | None = option(
        None, "Micro-batches per rollout; gradient_accumulation_steps if unset.", resume="order"
    )
    prompts_per_rollout: int | None = option(
        None, "Prompts per rollout over all devices; as many as the micro-batches hold if unset.", resume="order"
    )
    group_placement: str = option(
        "rank-local", "rank-local: whole groups on one device; spread: every group on all.", resume="order"
    )

    # Update
    num_iterations: int = option(1, "Passes over each rollout.", resume="order")
    beta: float = option(0.0, "Weight of the KL to the reference policy; 0 is off.")
    epsilon: float = option(1e-4, "Clip width of the policy ratio.")
    epsilon_high: float | None = option(None, "Upper clip width; epsilon if unset.")
    adv_clip_max: float | None = option(5.0, "Advantages are clipped to plus or minus this.", resume="next")
    scale_rewards: str = option(
        "group", "Scale advantages by the std of the group, of the batch, or none.", resume="next"
    )
    loss_type: str = option("grpo", "grpo, or grpo_guard for the ratio normalisation of GRPO-Guard.")
    step_weighting: float = option(0.0, "Loss weights of denoising steps proportional to std to this power.")
    log_prob_reduction: str = option("mean", "mean or sum over latent dimensions.", resume="rollout")
    reward_weights: list[float] | None = option(None, "One weight per reward function; all 1 if unset.", resume="next")
    preview_reward_weights: list[float] | None = option(
        None, "One weight per preview reward function; all 1 if unset.", resume="next"
    )
    on_reward_error: str = option("raise", "raise, skip (leave out images without a score) or retry.", resume="next")
    reward_timeout: float | None = option(
        None, "Seconds a call of a reward function may take; any time if unset.", resume="next"
    )
    reward_max_retries: int = option(3, "Further calls with on_reward_error retry.", resume="next")
    multi_objective_aggregation: str = option(
        "sum_then_normalize", "sum_then_normalize, or normalize_then_sum (GDPO) for several rewards.", resume="next"
    )
    ema_decay: float | None = option(
        None, "Decay of a moving average of the trained weights; off if unset.", resume="average"
    )
    ema_update_interval: int = option(1, "Optimiser updates between two EMA updates.", resume="state")

    # Evaluation and logging
    eval_num_inference_steps: int | None = option(None, "Denoising steps in evaluation; num_inference_steps if unset.")
    eval_use_ema: bool = option(True, "With ema_decay: evaluate the average; if False, the weights in training.")
    num_validation_prompts: int = option(
        4, "Fixed prompts whose images go to the trackers and the model card; 0 for none."
    )
    log_images_steps: int | None = option(
        None, "Steps between two sets of pictures for trackers; ten sets a run if unset."
    )
    log_completions: bool = option(False, "Print a table of prompts, rewards and advantages at every logging step.")
    num_completions_to_print: int | None = option(None, "Survivors in that table; those of one group if unset.")

    def __post_init__(self):
        if self.bf16 is None:
            self.bf16 = not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        for name in _PATHS:
            value = getattr(self, name)
            if isinstance(value, str | os.PathLike):
                setattr(self, name, os.path.expanduser(value))
        for name in ("output_dir", "prompt_cache_dir"):
            if getattr(self, name) is not None:
                self._check_writable(name)
        take_trackers(self)
        self._check_texts()
        self._take_lists()
        check_numbers(self)
        check_choices(self)
        check_dicts(self)
        if self.metric_for_best_model is None and watches_a_metric(self):
            # The base class would take the loss, which evaluation here does not have.
            self.metric_for_best_model = "reward"
        # Hidden from the base class, which would have accelerate wrap the module that is updated and leave the one that
        # samples uncompiled; the trainer compiles the denoiser in place.
        compile_options = self.torch_compile, self.torch_compile_backend, self.torch_compile_mode
        self.torch_compile, self.torch_compile_backend, self.torch_compile_mode = False, None, None
        if hasattr(self, "activation_checkpointing") and self.activation_checkpointing is None:
            # The name that newer versions of transformers ask for, of the same switch.
            self.activation_checkpointing = self.gradient_checkpointing
        super().__post_init__()
        use_one_device(self)
        self.torch_compile = any(compile_options)
        self.torch_compile_backend = compile_options[1] or ("inductor" if self.torch_compile else None)
        self.torch_compile_mode = compile_options[2]
        if self.num_expansions is None:
            self.num_expansions = self.num_generations
        if self.steps_per_generation is None:
            self.steps_per_generation = self.gradient_accumulation_steps
        if self.rollout_batch_size is None:
            self.rollout_batch_size = self.per_device_train_batch_size
        if self.fp16 and self.device.type == "cpu":
            raise ValueError(
                "`fp16` is True, but this run is on the CPU, which cannot do that; use `bf16`, or neither."
            )
        self._check_numbers()
        check_optimizer_runs(self)
        follow_the_reward(self)
        check_keywords(self)
        self._check_pruning()
        self._check_batches()
        self._check_unsupported()
        self._warn_of_what_does_nothing()

    def _check_texts(self):
        # Not `fields`, in whose types the parser of transformers puts others.
        for name, kind in ProGRPOConfig.__annotations__.items():
            value = getattr(self, name, None)
            # Of a function where a name belongs the registry tells the cure.
            if kind not in ("str", "str | None") or callable(value):
                continue
            if not isinstance(value, str) and not (value is None and kind == "str | None"):
                several = isinstance(value, (list, tuple)) and value and all(isinstance(entry, str) for entry in value)
                example = f", such as {', '.join(value)!r}" if several else ""
                raise ValueError(f"`{name}` is {value!r}; give one text{example}.")

    def _take_lists(self):
        """Makes lists of plain numbers of whatever they came in: they are compared, and written as JSON."""
        for name, number, example in (
            ("prune_steps", operator.index, [5, 7]),
            ("prune_sizes", operator.index, [24, 12]),
            ("reward_weights", float, [1.0, 0.5]),
            ("preview_reward_weights", float, [1.0, 0.5]),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            try:
                # A text would be read letter by letter, a mapping by its keys, and True as 1.
                if isinstance(value, (str, Mapping)) or any(isinstance(entry, (str, bool)) for entry in value):
                    raise TypeError
                setattr(self, name, [number(entry) for entry in value])
            except (TypeError, ValueError) as error:
                raise ValueError(f"`{name}` is {value!r}; give a list such as {example}.") from error

    def geometry(self, num_processes: int | None = None) -> Geometry:
        """
        How a rollout is dealt to processes, updates and micro-batches.

        Args:
            num_processes (`int`, *optional*): how many there are; those of this run when unset.

        Raises:
            ValueError: if the trajectories to train on do not fit into the micro-batches.
        """
        processes = num_processes or self.world_size
        room = self.per_device_train_batch_size * self.steps_per_generation
        num_prompts = self.prompts_per_rollout
        if num_prompts is None and self.group_placement == "spread":
            num_prompts = max(1, processes * room // self.num_generations)
        elif num_prompts is None:
            num_prompts = processes * (room // self.num_generations)
        return Geometry(
            num_prompts=num_prompts,
            num_generations=self.num_generations,
            num_processes=processes,
            num_updates=self.steps_per_generation // self.gradient_accumulation_steps,
            micro_batches=self.gradient_accumulation_steps,
            micro_batch_size=self.per_device_train_batch_size,
            placement=self.group_placement,
        )

    @property
    def micro_steps_per_rollout(self) -> int:
        """Micro-batches trained between two rollouts."""
        return self.steps_per_generation * self.num_iterations

    def noise_steps(self, stochastic_steps: Sequence[int], rollout_index: int = 0) -> tuple[int, ...]:
        """The steps of a rollout that carry noise, of those that may; see [`~windows.window_steps`]."""
        return window_steps(
            stochastic_steps,
            self.sde_window,
            self.sde_window_size,
            self.sde_window_start,
            self.sde_window_interval,
            rollout_index,
            self.seed,
        )

    def train_steps(self, stochastic_steps: Sequence[int], rollout_index: int = 0) -> tuple[int, ...]:
        """The steps of a rollout that are trained: the first of its noisy ones, as `train_timestep_fraction` says."""
        noisy = self.noise_steps(stochastic_steps, rollout_index)
        # Rounded first: 0.3 of 10 is 3, whatever floating point makes of it.
        return noisy[: max(1, math.ceil(round(self.train_timestep_fraction * len(noisy), 9)))] if noisy else noisy

    def to_dict(self):
        """As the base class, which hides tokens, and without the token in `model_init_kwargs` as well."""
        values = super().to_dict()
        if isinstance(values["model_init_kwargs"], dict) and "token" in values["model_init_kwargs"]:
            values["model_init_kwargs"] = {**values["model_init_kwargs"], "token": "<TOKEN>"}
        return values

    def _check_numbers(self):
        at_least_one = (
            "num_inference_steps", "num_iterations", "steps_per_generation", "rollout_batch_size", "decode_batch_size",
            "preview_batch_size", "preview_downscale", "rollout_waves", "prompts_per_rollout",
            "eval_num_inference_steps", "ema_update_interval", "sde_window_interval", "height", "width",
            "log_images_steps", "num_completions_to_print", "reward_max_retries", "max_sequence_length", "sde_window_size",
        )  # fmt: skip
        for name in at_least_one:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; use at least 1.")
        if self.num_validation_prompts < 0:
            raise ValueError(f"`num_validation_prompts` is {self.num_validation_prompts}; use 0 for none, or more.")
        if self.sde_window_start < 0:
            raise ValueError(f"`sde_window_start` is {self.sde_window_start}; use 0 for the first step, or more.")
        if self.sde_window_size is not None and self.sde_window is None:
            raise ValueError(
                f"`sde_window_size` is {self.sde_window_size} without `sde_window`; use fixed, sliding or random for that, or "
                "leave the size unset."
            )
        if self.num_inference_steps < 2:
            raise ValueError("`num_inference_steps` is 1; use at least 2: the last step carries no noise to train on.")
        for name in (
            "noise_level",
            "eta",
            "epsilon",
            "epsilon_high",
            "adv_clip_max",
            "learning_rate",
            "reward_timeout",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` is {value}; use a positive number.")
        if self.eta > 1:
            raise ValueError(f"`eta` is {self.eta}; use a number above 0 and at most 1.")
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"`beta` is {self.beta}; use 0 for no KL term, or a positive number.")
        if not 1 <= self.guidance_scale < math.inf:
            raise ValueError(f"`guidance_scale` is {self.guidance_scale}; use 1 for no guidance, or a number above 1.")
        if not math.isfinite(self.step_weighting):
            raise ValueError(f"`step_weighting` is {self.step_weighting}; use a finite number, 0 for equal weights.")
        if not 0 < self.train_timestep_fraction <= 1:
            raise ValueError(
                f"`train_timestep_fraction` is {self.train_timestep_fraction}; use a share of the noisy steps above 0 and at "
                "most 1."
            )
        if not 0 <= self.audit_fraction <= 1:
            raise ValueError(
                f"`audit_fraction` is {self.audit_fraction}; use a share of groups from 0 (off) to 1 (all)."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` is {self.ema_decay}; use a number between 0 and 1, or leave it unset.")
        for name, choices in (
            ("group_placement", PLACEMENTS),
            ("scale_rewards", ("group", "batch", "none")),
            ("log_prob_reduction", ("mean", "sum")),
            ("loss_type", ("grpo", "grpo_guard")),
            ("on_reward_error", ON_REWARD_ERROR),
            ("multi_objective_aggregation", ("sum_then_normalize", "normalize_then_sum")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; use one of {', '.join(choices)}.")
        self.train_steps(range(self.num_inference_steps))
        if self.policy is not None:
            POLICIES.get(self.policy)
        PRUNING_RULES.get(self.pruning_rule)

    def _check_pruning(self):
        if self.num_generations < 2:
            raise ValueError(
                f"`num_generations` is {self.num_generations}; a group needs at least 2 trajectories to have an advantage."
            )
        if self.num_expansions < self.num_generations:
            raise ValueError(
                f"`num_expansions` is {self.num_expansions}, below `num_generations` {self.num_generations}; start at "
                "least as many trajectories as are trained on."
            )
        self._check_prune_schedule()
        steps, sizes = self.prune_steps or [], self.prune_sizes or []
        if len(steps) != len(sizes):
            raise ValueError(
                f"`prune_steps` has {len(steps)} entries and `prune_sizes` {len(sizes)}; give one size per step."
            )
        for step in steps:
            if not 0 <= step < self.num_inference_steps:
                raise ValueError(
                    f"`prune_steps` holds {step}, but with `num_inference_steps` {self.num_inference_steps} steps are "
                    f"0 to {self.num_inference_steps - 1}; choose among those."
                )
        if any(a >= b for a, b in zip(steps, steps[1:])):
            raise ValueError(f"`prune_steps` is {steps}; give increasing steps, e.g. {sorted(set(steps))}.")
        for before, after in zip([self.num_expansions, *sizes], sizes):
            if after >= before:
                raise ValueError(
                    f"`prune_sizes` is {sizes} after `num_expansions` {self.num_expansions}: {after} is not below {before}; "
                    "give falling sizes."
                )
        if sizes and sizes[-1] < self.num_generations:
            raise ValueError(
                f"`prune_sizes` ends at {sizes[-1]}, below `num_generations` {self.num_generations}; end at "
                "`num_generations`, or above it for a last selection on the true rewards."
            )

    def _check_prune_schedule(self):
        if self.prune_schedule is None:
            return
        if self.prune_schedule != "auto":
            raise ValueError(f"`prune_schedule` is {self.prune_schedule!r}; use 'auto', or leave it unset.")
        for name in ("prune_steps", "prune_sizes"):
            if getattr(self, name):
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, but `prune_schedule` 'auto' chooses it; leave one of the two unset."
                )
        if self.num_expansions <= self.num_generations:
            raise ValueError(
                f"`num_expansions` is {self.num_expansions}, not above `num_generations` {self.num_generations}; give the most "
                f"trajectories that `prune_schedule` 'auto' may start per prompt, e.g. {4 * self.num_generations}."
            )
        if self.pruning_rule != "ovf":
            raise ValueError(
                f"`pruning_rule` is {self.pruning_rule!r}, but `prune_schedule` 'auto' chooses for 'ovf'; use that, or give "
                "`prune_steps` and `prune_sizes` yourself."
            )
        if self.prune_schedule_interval < 0:
            raise ValueError(
                f"`prune_schedule_interval` is {self.prune_schedule_interval}; use 0 for a choice at the start only, or more."
            )
        if self.prune_schedule_groups < 2:
            raise ValueError(
                f"`prune_schedule_groups` is {self.prune_schedule_groups}; use at least 2, for one group cannot tell a good "
                "schedule from luck."
            )

    def _check_batches(self):
        trained = self.per_device_train_batch_size * self.steps_per_generation
        if self.steps_per_generation % self.gradient_accumulation_steps:
            above = (
                -(-self.steps_per_generation // self.gradient_accumulation_steps) * self.gradient_accumulation_steps
            )
            raise ValueError(
                f"`steps_per_generation` is {self.steps_per_generation}, no multiple of `gradient_accumulation_steps` "
                f"{self.gradient_accumulation_steps}; use e.g. {above}, for an optimiser update may not straddle two rollouts."
            )
        if self.group_placement == "spread" and self.rollout_waves > 1:
            raise ValueError(
                f"`rollout_waves` is {self.rollout_waves}, but with `group_placement` 'spread' all devices meet at every "
                "checkpoint; use 1."
            )
        if self.group_placement == "rank-local" and trained < self.num_generations:
            raise ValueError(
                f"`per_device_train_batch_size` {self.per_device_train_batch_size} times `steps_per_generation` "
                f"{self.steps_per_generation} is {trained} trajectories, fewer than `num_generations` "
                f"{self.num_generations}; a whole group must fit, e.g. with steps_per_generation="
                f"{-(-self.num_generations // self.per_device_train_batch_size)}, unless `group_placement` is 'spread'."
            )

    def _check_unsupported(self):
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` is True, but the reward functions need the columns; use False.")
        for name, off, why in (
            ("neftune_noise_alpha", None, "a denoiser has no token embeddings"),
            ("label_smoothing_factor", 0.0, "there are no labels"),
            ("use_liger_kernel", False, "Liger has no kernels for diffusion models"),
            ("gradient_checkpointing_kwargs", None, "diffusers checkpoints every block in its own way"),
            ("activation_checkpointing_kwargs", None, "diffusers checkpoints every block in its own way"),
            ("ignore_data_skip", False, "a resumed run goes on with the prompts that would have come next"),
            ("auto_find_batch_size", False, "the batch size fixes how many prompts a rollout has"),
            ("enable_jit_checkpoint", False, "SIGTERM saves a checkpoint by itself, and not in the midst of a step"),
        ):
            if getattr(self, name, off) != off:
                raise ValueError(f"`{name}` is {getattr(self, name)}, which is not supported: {why}; use {off}.")

    def _warn_of_what_does_nothing(self):
        options = {option.name: option.default for option in fields(self)}
        for name, needs in without_effect(self).items():
            # An empty text is as good as none.
            if getattr(self, name) not in (options[name], ""):
                warnings.warn(
                    f"`{name}` is {getattr(self, name)!r}, which does nothing without {needs}; set that, or leave it unset.",
                    stacklevel=4,
                )

    def _check_writable(self, name: str):
        """Fails before hours of work if a folder cannot be written, or its disk is full."""
        folder = getattr(self, name)
        try:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(_BLOCK))
        except OSError as error:
            raise ValueError(
                f"`{name}` {folder!r} cannot be written ({error.strerror}); choose a folder you may write to, on a disk that "
                "is not full."
            ) from error
