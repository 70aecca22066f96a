# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Pro-GRPO on transformers' training loop."""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import EMAModel
from huggingface_hub import CommitInfo
from peft import LoraConfig
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .adapters import (
    adapters_disabled,
    add_adapter,
    averaged_tensors,
    default_lora_config,
)
from .advantages import comparable_rows, group_advantages, normalize_multi
from .arithmetic import count_work, resolved_arithmetic
from .audit import AuditWatch, audit_metrics, audit_size
from .auto_schedule import AutoSchedule
from .callbacks import ProGRPOProgressCallback
from .checkpoint_folders import STAGING
from .checkpoints import (
    checkpoint_to_resume,
    load_rollout,
    load_weights,
    save_checkpoint,
    save_weights,
    what_is_trained_kept,
)
from .data import (
    LOOKED_AT,
    RolloutSampler,
    RolloutStream,
    as_eval_prompts,
    as_prompts,
    as_rewards_read,
    check_datasets,
    check_prompts,
    check_rewards,
    check_rows,
    collate_rows,
    distinct_prompts,
    is_stream,
    readable,
    stream_check,
    warn_about_long_prompts,
    without_unread,
)
from .dealing import MicroBatch, micro_batches, own_advantages, whole_groups
from .evaluation import PairedGains, held_out_metrics, held_out_scores, warn_of_silent_rewards, watching_runner
from .families import family_class, load_pipeline, load_preview_decoder
from .families.loading import by_name
from .heldout import HackingWatch
from .hub import BackgroundPushes, check_push, hub_api, open_repo, push_checkpoint, push_run, redact
from .isolation import modes_kept
from .loop import AverageCallback, LoopCallback, dress_for_the_loop, keep_tensorboard_in
from .losses import clip_advantages, guard_log_ratio, log_ratio, policy_loss, step_weights
from .metrics import MetricsBuffer, prune_metrics, reward_counts, reward_metrics
from .model_card import CardPictures, portable_values, started_with, write_model_card
from .monitoring import CompletionsCallback, GroupWatch, TrackerImagesCallback, check_trackers
from .optimizers import InitialSettings, averaged, averages, end_averaging
from .out_of_memory import run_memory, update_memory
from .policies import POLICIES, noise_option
from .progrpo_config import ProGRPOConfig
from .prompt_cache import PromptCache
from .pruning import PRUNING_RULES
from .ranks import RankWatch
from .rewards import REWARD_ERROR_KINDS, RewardFunc, RewardRunner
from .sampler import ExpandPruneSampler
from .seeds import derive_seed
from .sharded_trainer import ShardingTrainer
from .sharding import backward, gradients_accumulate, load_whole_weights, reshard, shard
from .sharding_checks import check_sharding, sharding_of
from .spread import Spread
from .standard_streams import keep_printing
from .stopping import StopCallback, StopRequest
from .timing import PhaseTimer
from .trainer_checks import (
    check_before_weights,
    check_gradients,
    check_objects,
    check_optimizer,
    check_pipeline,
    check_trained,
    unwrap_compiled,
)
from .types import Rollout, to_device


EVAL_ROLLOUT = -1
"""Rollout index of evaluation, so that its seeds never meet those of training."""


def _take(values: Sequence[Any], index: Sequence[int]) -> list[Any]:
    return [values[i] for i in index]


def _pipeline_given_back(init: Callable) -> Callable:
    """Take the adapter off the caller's pipeline where a constructor ends in an error, so that the next one can be made."""

    @wraps(init)
    def wrapped(self, *args, **kwargs):
        try:
            init(self, *args, **kwargs)
        except BaseException:
            if getattr(self, "use_adapter", False):
                self.family.denoiser.unload_lora()
            raise

    return wrapped


class ProGRPOTrainer(ShardingTrainer):
    """
    Trainer for Expand-and-Prune GRPO (arXiv 2512.15347) on text-to-image diffusion and flow models.

    With `num_expansions` unset it is plain GRPO (Flow-GRPO, DDPO with group advantages); with `num_expansions` alone
    it selects among finished trajectories; with `prune_steps` and `prune_sizes` it prunes in mid-denoising; with
    `prune_schedule="auto"` it measures which of these pays.

    ```python
    from trl_progrpo import ProGRPOConfig, ProGRPOTrainer

    trainer = ProGRPOTrainer(
        model="shapes",
        reward_funcs="shapes",
        args=ProGRPOConfig(output_dir="out", num_expansions=48, prune_steps=[5, 7], prune_sizes=[24, 12]),
        train_dataset=dataset,
    )
    trainer.train()
    trainer.save_model()  # pipeline.load_lora_weights("out") loads it
    ```

    Args:
        model (`str`, `os.PathLike` or [`~diffusers.DiffusionPipeline`]): Hub name, local folder, `"shapes"` for the embedded
            model, or a loaded pipeline, which is trained in place. The family is chosen by the pipeline class.
        reward_funcs (`RewardFunc`, `str` or a list of them): `reward(prompts, images, **columns) -> list[float | None]`,
            or names; see [`~rewards.RewardFunc`].
        args ([`ProGRPOConfig`], *optional*): the configuration; the defaults, in `trl-progrpo-output`, when unset.
        train_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or `list`, *optional* but for training): rows
            with a prompt column, whose other columns go to the reward functions; a list of prompts or of rows; or a stream,
            with `max_steps`.
        eval_dataset ([`~datasets.Dataset`], `list`, or a `dict` of them, *optional*): held-out prompts, one image each.
        callbacks (`list[TrainerCallback]`, *optional*): added to the defaults. A method
            `on_phase(args, state, control, phase, done, total)` is told what a rollout is doing.
        optimizers (`tuple`, *optional*): optimiser and scheduler, as in [`~transformers.Trainer`]; an optimiser only where all
            weights are trained, for those of a LoRA are made here.
        peft_config ([`~peft.LoraConfig`], `"default"` or `None`): the LoRA that is trained; `"default"` is the family's,
            `None` trains the whole denoiser.
        eval_reward_funcs (`RewardFunc`, `str` or a list of them, *optional*): scored in evaluation only, never trained on.
        preview_reward_funcs (`RewardFunc`, `str` or a list of them, *optional*): score the previews that pruning looks at;
            `reward_funcs` when unset. For rewards that are too slow, or need finished images.

    Raises:
        ValueError: for anything that cannot work, before weights are loaded where that can be known.
    """

    _tag_names = ["trl", "progrpo"]
    _name = "Pro-GRPO"
    _sampler_class = ExpandPruneSampler
    """What makes rollouts and samples for evaluation; `benchmarks/arena_switches.py` has others."""

    @_pipeline_given_back
    def __init__(
        self,
        model: str | os.PathLike | DiffusionPipeline,
        reward_funcs: RewardFunc | str | Sequence[RewardFunc | str],
        args: ProGRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        peft_config: LoraConfig | Literal["default"] | None = "default",
        eval_reward_funcs: RewardFunc | str | Sequence[RewardFunc | str] | None = None,
        preview_reward_funcs: RewardFunc | str | Sequence[RewardFunc | str] | None = None,
    ):
        keep_printing()
        model = by_name(model)
        args = args if args is not None else ProGRPOConfig(output_dir="trl-progrpo-output")
        check_objects(args, peft_config)
        self._warn_of_what_is_not_called()
        if args.push_to_hub:
            check_push(args)
        check_trackers(args.report_to)
        faults = {
            "on_error": args.on_reward_error,
            "timeout": args.reward_timeout,
            "max_retries": args.reward_max_retries,
        }
        self.reward_runner = RewardRunner(reward_funcs, args.reward_weights, **faults)
        self.eval_reward_runner = watching_runner(eval_reward_funcs, self.reward_runner, **faults)
        self.preview_reward_runner = self._make_preview_runner(
            args, preview_reward_funcs, self.reward_runner, **faults
        )
        train_dataset = as_prompts(train_dataset, args.prompt_column, "train_dataset")
        eval_dataset = as_eval_prompts(eval_dataset, args.prompt_column)
        runners = (self.reward_runner, self.preview_reward_runner, self.eval_reward_runner)
        train_dataset, eval_dataset = as_rewards_read(train_dataset, eval_dataset, args.prompt_column, *runners)
        check_datasets(args, train_dataset, eval_dataset)
        check_rewards(args, train_dataset, eval_dataset, *runners)
        check_sharding(args, optimizers[0])
        load_whole_weights(args)
        init_kwargs = dict(args.model_init_kwargs or {})
        family = family_class(model, **init_kwargs)
        policy = self._make_policy(args, family)
        if isinstance(model, str):
            check_before_weights(model, family, args)
        for runner in filter(None, runners):
            runner.load()
        self._opened_repo = open_repo(args) if args.push_to_hub and args.process_index == 0 else None

        # LoRA's initial weights come from the global generator, and the base class seeds it only later.
        set_seed(args.seed)
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        pipeline = load_pipeline(model, torch.float32 if peft_config is None else dtype, **init_kwargs)
        unwrap_compiled(pipeline, family.denoiser_name)
        self.model_name = model if isinstance(model, str) else pipeline.name_or_path
        self.family = family.with_options(pipeline, args)
        if not isinstance(model, str):
            check_pipeline(pipeline, self.family, peft_config is None)
        self.reference_denoiser = self._prepare_denoiser(args, peft_config)
        check_optimizer(optimizers[0], self.family.denoiser)
        dress_for_the_loop(self.family.denoiser)
        self._micro_batches: list[MicroBatch] = []
        self._micro_batches_of: tuple[int, int] | None = None
        self.last_rollout: Rollout | None = None
        self.last_prompts: list[str] = []
        self._metrics = MetricsBuffer()
        self._timer = PhaseTimer()
        self._audit_watch = AuditWatch()
        self._hacking_watch, self.paired_gains = HackingWatch(self.reward_runner.names), PairedGains()
        self._micro_steps_since_update = 0
        self._gradients_checked = False
        self.initial_settings = InitialSettings()
        self.card_pictures = CardPictures(self)
        # Now, as a config file may hold something else by the time a card is written.
        self.command = started_with()
        self._card_details: dict[str, Any] = {}
        self.whole_pipelines: set[str] = set()

        super().__init__(
            model=self.family.denoiser,
            args=args,
            data_collator=collate_rows,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        keep_tensorboard_in(self.callback_handler.callbacks, args.output_dir)
        self.rank_watch = RankWatch.of(self.accelerator.state)
        self.geometry = args.geometry(self.accelerator.num_processes)
        if self.is_fsdp_enabled:
            # Now: whole, it may not fit on the device, where the rest of the pipeline is about to go.
            for denoiser in filter(None, (self.family.denoiser, self.reference_denoiser)):
                shard(self.accelerator, denoiser)
        pipeline.to(self.accelerator.device)
        if self.reference_denoiser is not None:
            self.reference_denoiser.to(self.accelerator.device)
        self.prompt_cache = PromptCache(self.family, args.prompt_cache_dir)
        self._prepare_prompts()
        self.preview_decoder = load_preview_decoder(args.preview_decoder, self.accelerator.device)
        self.prompt_sampler: RolloutSampler | RolloutStream | None = None
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        if not args.disable_tqdm:
            self.add_callback(ProGRPOProgressCallback())
        self._loop_callback = LoopCallback(self)
        self.add_callback(self._loop_callback)
        self._stop_request = StopRequest()
        self.add_callback(StopCallback(self._stop_request, self.accelerator))
        self.ema: EMAModel | None = None
        if args.ema_decay is not None:
            self.ema = EMAModel(averaged_tensors(self.family.denoiser), decay=args.ema_decay)
            self.callback_handler.callbacks.insert(0, AverageCallback(self))
        self.group_watch = GroupWatch()
        # Last, so that trackers have begun their run and the average its step when pictures are drawn.
        self.add_callback(TrackerImagesCallback(self))
        if args.log_completions:
            self.add_callback(CompletionsCallback(self))

        self.sampler = self._make_sampler(
            policy,
            args.num_inference_steps,
            num_generations=args.num_generations,
            num_expansions=args.num_expansions,
            prune_steps=args.prune_steps,
            prune_sizes=args.prune_sizes,
            pruning_rule=PRUNING_RULES.get(args.pruning_rule),
            preview_decoder=self.preview_decoder,
            preview_downscale=args.preview_downscale,
            preview_batch_size=args.preview_batch_size,
            preview_scorer=self.preview_reward_runner,
            preview_reward_weights=self.preview_reward_runner.weights,
            num_waves=args.rollout_waves,
            keep_means=args.loss_type == "grpo_guard" and not self._on_policy,
            on_preview=self.group_watch,
            spread=Spread(self.rank_watch) if args.group_placement == "spread" else None,
        )
        self._check_steps(policy)
        is_auto = args.prune_schedule == "auto"
        self.auto_schedule = AutoSchedule(self, self._metrics, self._timer) if is_auto else None

    # ---- construction ------------------------------------------------------------------------------------------------

    @property
    def pipeline(self) -> DiffusionPipeline:
        """The pipeline whose denoiser is trained, adapter included."""
        return self.family.pipeline

    @property
    def schedule_choices(self) -> list[dict[str, Any]]:
        """What `prune_schedule="auto"` has chosen so far, oldest first; see [`~auto_schedule.ScheduleChoices`]."""
        return [] if self.auto_schedule is None else self.auto_schedule.memory.choices

    @staticmethod
    def _make_preview_runner(args, preview_reward_funcs, reward_runner, **faults) -> RewardRunner:
        if preview_reward_funcs:
            weights = args.preview_reward_weights
            return RewardRunner(preview_reward_funcs, weights, "preview_reward_weights", **faults)
        if args.preview_reward_weights is not None:
            raise ValueError(
                f"`preview_reward_weights` is {args.preview_reward_weights} without `preview_reward_funcs`; name the "
                "functions that score previews, or leave it unset."
            )
        return reward_runner

    def _warn_of_what_is_not_called(self) -> None:
        for name in ("compute_loss", "prediction_step", "evaluation_loop"):
            if getattr(type(self), name) is not getattr(ShardingTrainer, name):
                warnings.warn(
                    f"`{name}` of {type(self).__name__} is never called: the loss is made step by step in `_step_loss`, and "
                    "`evaluate` scores images; override those.",
                    stacklevel=3,
                )

    @staticmethod
    def _make_policy(args, family):
        name = args.policy or family.policies[0]
        if name in POLICIES.registered() and name not in family.policies:
            raise ValueError(
                f"`policy` is {name!r}, which does not fit {family.pipeline_classes[0]}; use {' or '.join(family.policies)}."
            )
        policy = POLICIES.get(name)
        level = {noise_option(policy): getattr(args, noise_option(policy))}
        return policy(**level, log_prob_reduction=args.log_prob_reduction)

    def _prepare_denoiser(self, args, peft_config) -> torch.nn.Module | None:
        """Puts the adapter on, or keeps a frozen copy for the KL of full fine-tuning."""
        pipeline, denoiser = self.family.pipeline, self.family.denoiser
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                component.requires_grad_(False)
                component.eval()
        reference = None
        if peft_config is not None:
            add_adapter(self.family, default_lora_config(self.family) if peft_config == "default" else peft_config)
        else:
            reference = copy.deepcopy(denoiser) if args.beta > 0 else None
            denoiser.requires_grad_(True)
        # Only now: an adapter that could not be put on is the caller's.
        self.use_adapter = peft_config is not None
        if args.vae_slicing:
            pipeline.vae.enable_slicing()
        if args.vae_tiling:
            pipeline.vae.enable_tiling()
        if args.torch_compile:
            # In place, so that rollout and update both run it.
            denoiser.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
        # Two names for one switch; which of them carries it depends on the version of transformers.
        if args.gradient_checkpointing or getattr(args, "activation_checkpointing", False):
            denoiser.enable_gradient_checkpointing()
        return reference

    def _prepare_prompts(self) -> None:
        """Warns of prompts that are too long; encodes all of them if the text encoders are to go."""
        args = self.args
        evaluation = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        limit = None if args.drop_text_encoders else LOOKED_AT
        prompts = distinct_prompts([self.train_dataset, *evaluation], args.prompt_column, limit)
        if self.is_world_process_zero():
            warn_about_long_prompts(prompts, self.family.prompt_token_limit, self.family.count_tokens)
        if not args.drop_text_encoders:
            return
        if args.prompt_cache_dir is not None:
            # With a folder every process encodes its share, and finds that of the others there.
            share = prompts[self.accelerator.process_index :: self.accelerator.num_processes]
            self.prompt_cache.encode(share, args.negative_prompt)
            self.accelerator.wait_for_everyone()
        self.prompt_cache.encode(prompts, args.negative_prompt)
        self.prompt_cache.drop_text_encoders()

    def _make_sampler(self, policy, num_inference_steps, **kwargs) -> ExpandPruneSampler:
        return self._sampler_class(
            self.family,
            policy,
            kwargs.pop("scorer", self.reward_runner),
            reward_weights=kwargs.pop("reward_weights", self.reward_runner.weights),
            num_inference_steps=num_inference_steps,
            rollout_batch_size=self.args.rollout_batch_size,
            decode_batch_size=self.args.decode_batch_size,
            offload=self.args.offload_rollout,
            seed=self.args.seed,
            on_progress=kwargs.pop("on_progress", self.on_phase),
            **kwargs,
        )

    def _check_steps(self, policy) -> None:
        if not self.args.train_steps(self.stochastic_steps):
            raise ValueError(
                f"`num_inference_steps` is {self.args.num_inference_steps}, and none of its steps carries noise with "
                f"{policy!r}; use more steps or more noise."
            )
        if self.args.eval_num_inference_steps is not None:
            # A scheduler that has no such schedule is to say so before the training.
            self.family.make_schedule(self.args.eval_num_inference_steps)

    # ---- what the base class asks about data -------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self):
        self._signature_columns = [self.args.prompt_column]

    def get_train_dataloader(self) -> DataLoader:
        """
        One batch per micro-step: the prompts of its rollout, all of them on every process, which takes its share. It is not
        prepared by accelerate, which would deal them out in its own way.
        """
        if self.train_dataset is None:
            raise ValueError("`train_dataset` is None; give a dataset with prompts to train on.")
        args, size = self.args, self.geometry.num_prompts
        order = (
            size,
            args.micro_steps_per_rollout,
            args.seed if args.data_seed is None else args.data_seed,
            args.train_sampling_strategy != "sequential",
        )
        if is_stream(self.train_dataset):
            runners = [self.reward_runner, self.preview_reward_runner]
            # Whose rows are skipped has to go on.
            check = None if args.on_reward_error == "skip" else stream_check(args.prompt_column, runners)
            self.prompt_sampler = RolloutStream(self.train_dataset, args.prompt_column, *order, check=check)
            # Workers would each read the whole stream.
            return DataLoader(self.prompt_sampler, batch_size=size, collate_fn=self.data_collator, num_workers=0)
        self.prompt_sampler = RolloutSampler(len(self.train_dataset), *order)
        return DataLoader(
            readable(self.train_dataset),
            batch_size=size,
            sampler=self.prompt_sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
        )

    def get_total_train_batch_size(self, args) -> int:
        return self._train_batch_size * args.gradient_accumulation_steps * args.world_size

    def floating_point_ops(self, inputs) -> int:
        return 0

    def _send_telemetry(self) -> None:
        """Nothing is reported: TRL's telemetry reads fields that a diffusers config does not have."""

    # ---- rollout -----------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict[str, list[Any]]) -> MicroBatch:
        """The rows of this micro-step, after a rollout if one is due. Which is due follows from the step count alone."""
        rollout_index, position = self._position
        iteration, position = divmod(position, self.args.steps_per_generation)
        if self._micro_batches_of != (rollout_index, iteration):
            # They take as much memory as the rollout itself.
            self._micro_batches = []
            if self.last_rollout is None or self.last_rollout.rollout_index != rollout_index:
                self._rollout(inputs, rollout_index)
            turn = derive_seed(self.args.seed, rollout_index) % self.geometry.num_updates + iteration
            rank, device = self.accelerator.process_index, self.accelerator.device
            self._micro_batches = micro_batches(self.last_rollout, self.geometry, rank, turn, device)
            self._micro_batches_of = (rollout_index, iteration)
        batch = self._micro_batches[position]
        path = {name: getattr(batch.rows, name) for name in ("latents", "means")}
        path = {name: to_device(t, self.accelerator.device) for name, t in path.items() if t is not None}
        return replace(batch, rows=batch.rows.replace(**path))

    @property
    def _position(self) -> tuple[int, int]:
        """Index of the rollout that is to be trained on next, and how many of its micro-batches have been."""
        done = self.state.global_step * self.args.gradient_accumulation_steps + self._micro_steps_since_update
        return divmod(done, self.args.micro_steps_per_rollout)

    def _rollout(self, inputs: dict[str, list[Any]], rollout_index: int) -> None:
        check_trained(self.family, self.model, self.use_adapter)
        rank, stochastic = self.accelerator.process_index, self.stochastic_steps
        slots = self.geometry.slots(rank)
        prompts, columns = self._split_columns(inputs)
        # A slot beyond the last prompt stands for it.
        mine = [min(slot, len(prompts) - 1) for slot in slots]
        prompts, columns = _take(prompts, mine), {name: _take(values, mine) for name, values in columns.items()}
        rollout = self._restore_rollout(prompts, rollout_index)
        if rollout is None:
            if self.auto_schedule is not None:
                self.auto_schedule.before_rollout(inputs, rollout_index)
            # Those since the last rollout are of pictures, and of groups that a schedule was chosen by.
            self._count_errors()
            with self.rank_watch.together(), self._inference():
                rollout = self.sampler.rollout(
                    self.family.denoiser,
                    prompts,
                    columns,
                    conditioning=self._encode(prompts),
                    rollout_index=rollout_index,
                    first_slot=slots.start,
                    train_steps=self.args.train_steps(stochastic, rollout_index),
                    noise_steps=self.args.noise_steps(stochastic, rollout_index),
                    # The same number on every process, so that all make the same number of network calls.
                    audit=range(audit_size(self._audit_fraction, len(prompts), rollout_index)),
                )
            groups = whole_groups(rollout, self.geometry, rank, self.sampler.spread)
            advantages = self._advantages(groups)
            advantages[~comparable_rows(groups.rewards, groups.prompt_index)] = math.nan
            groups = groups.replace(advantages=advantages)
            rollout = rollout.replace(advantages=own_advantages(rollout, groups, self.geometry, rank))
            self._log_rollout(groups)
            self.group_watch.finish(prompts[0], rollout, self.state.global_step)
        self.last_rollout, self.last_prompts = rollout, prompts

    @property
    def stochastic_steps(self) -> tuple[int, ...]:
        """Denoising steps of a rollout that may carry noise; which of them do is for `args.noise_steps` to say."""
        return self.sampler.policy.stochastic_steps(self.family.make_schedule(self.args.num_inference_steps))

    def _encode(self, prompts: Sequence[str]):
        return self.prompt_cache(prompts, self.args.negative_prompt, "cpu" if self.args.offload_rollout else None)

    @property
    def _audit_fraction(self) -> float:
        return self.args.audit_fraction if self.sampler.prune_at else 0.0

    def _advantages(self, rollout: Rollout) -> torch.Tensor:
        args, batch_std = self.args, None
        if args.multi_objective_aggregation == "normalize_then_sum":
            return clip_advantages(self._normalized_advantages(rollout), args.adv_clip_max)
        if args.scale_rewards == "batch":
            everywhere = torch.cat(self.rank_watch.gather(rollout.rewards))
            everywhere = everywhere[~everywhere.isnan()].double()
            batch_std = everywhere.std(correction=0).item() if len(everywhere) else 0.0
        advantages = group_advantages(rollout.rewards, rollout.prompt_index, args.scale_rewards, batch_std=batch_std)
        return clip_advantages(advantages, args.adv_clip_max)

    def _normalized_advantages(self, rollout: Rollout) -> torch.Tensor:
        """Each reward normalised in its group, summed, and scaled by the spread of the sums on all processes."""
        sums = normalize_multi(
            rollout.rewards_per_func, rollout.prompt_index, self.reward_runner.weights, scale_batch=False
        )
        valid = ~rollout.rewards_per_func.isnan().all(1)
        totals = torch.stack([sums[valid].double().square().sum(), valid.sum().double()])
        square, count = self.accelerator.reduce(totals.to(self.accelerator.device), "sum").tolist()
        return sums / (math.sqrt(square / max(1.0, count)) + 1e-4)

    def _split_columns(self, inputs: dict[str, list[Any]]) -> tuple[list[str], dict[str, list[Any]]]:
        columns = dict(inputs)
        return columns.pop(self.args.prompt_column), columns

    @contextmanager
    def _inference(self):
        """No gradients, evaluation mode, and the mixed precision of the update."""
        denoiser = self.family.denoiser
        try:
            with modes_kept(denoiser), torch.no_grad(), self.accelerator.autocast():
                denoiser.eval()
                yield
        finally:
            reshard(denoiser)

    # ---- update ------------------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """One micro-batch: a forward and backward pass per trained denoising step, gradients synchronised in the last."""
        batch = self._prepare_inputs(inputs)
        # Going through all modules of a large network takes as long as the host needs to launch it.
        if not model.training:
            model.train()
        steps = range(len(batch.rows.step_indices))
        weights = self._step_weights(batch.rows)
        total = torch.zeros((), device=self.accelerator.device)
        with self._timer("update"), update_memory(self.args.per_device_train_batch_size, self.family.denoiser):
            for s in steps:
                with gradients_accumulate(self.accelerator, model, last=s == steps[-1]):
                    loss = self._step_loss(model, batch, s) * (weights[s] / len(steps))
                    backward(self.accelerator, loss)
                total += loss.detach()
                self.on_phase("update", s + 1, len(steps))
        self._micro_steps_since_update += 1
        if self._micro_steps_since_update == self.args.gradient_accumulation_steps:
            self._micro_steps_since_update = 0
            if not self._gradients_checked:
                check_gradients(self.family, sharding_of(self.args))
                self._gradients_checked = True
        return total

    def _step_weights(self, rows: Rollout) -> list[float]:
        stds = [self.sampler.policy.std(rows.schedule, i) for i in rows.step_indices]
        return step_weights(stds, self.args.step_weighting).tolist()

    def _step_loss(self, model, batch: MicroBatch, s: int) -> torch.Tensor:
        """What the rows add to the mean loss of the update at the `s`-th trained step."""
        args, device, rows, counted = self.args, self.accelerator.device, batch.rows, slice(batch.num_rows)
        transition = self._transition(model, rows, s)
        log_prob = transition.log_prob(rows.latents[:, s + 1])
        sampled = rows.log_probs[:, s].to(device)
        # On policy the ratio is 1 by definition; replaying the sampled value would only add the rounding of another batch shape.
        old_log_prob = log_prob.detach() if self._on_policy else sampled
        ratio = self._log_ratio(transition, log_prob, old_log_prob, rows, s)
        advantages = rows.advantages.to(device)
        loss, metrics = policy_loss(ratio, advantages.nan_to_num(), args.epsilon, args.epsilon_high, batch.num_rows)
        if args.loss_type == "grpo_guard":
            loss = loss / self.sampler.policy.step_size(rows.schedule, rows.step_indices[s])
        if args.beta > 0:
            kl = transition.kl(self._reference_transition(rows, s))
            loss = loss + args.beta * kl
            self._metrics.add("kl", kl[counted].detach().mean())
        if self._is_first_pass:
            drift = (log_prob.detach() - sampled)[counted].abs()
            self._metrics.add("sampling/sampling_logp_difference/mean", drift.mean())
            self._metrics.add("sampling/sampling_logp_difference/max", drift.max() if batch.num_rows else drift.mean())
        for name, value in metrics.items():
            self._metrics.add(name, value)
        # Rows that are left out weigh nothing, and the others what they always weigh.
        return torch.where(advantages.isnan(), 0.0, loss).sum() * batch.scale

    def _log_ratio(self, transition, log_prob, old_log_prob, rows: Rollout, s: int) -> torch.Tensor:
        if self.args.loss_type == "grpo":
            return log_ratio(log_prob, old_log_prob)
        if self._on_policy:
            old_mean = transition.mean.detach()
        elif rows.means is not None:
            old_mean = rows.means[:, s]
        else:
            # The sampled latents are mean + std * noise, and the noise can be drawn again: no need to store means.
            noise = self.sampler.noise(rows, rows.step_indices[s])
            old_mean = rows.latents[:, s + 1].to(transition.mean.dtype) - float(transition.std) * noise
        kl_to_old = transition.kl(replace(transition, mean=old_mean))
        return guard_log_ratio(log_prob, old_log_prob, kl_to_old, transition.std)

    def _transition(self, denoiser, rows: Rollout, s: int):
        step_index = rows.step_indices[s]
        latents = rows.latents[:, s]
        timestep = rows.schedule.timesteps[step_index].to(latents.device)
        with self.accelerator.autocast():
            output = self.family.predict(
                denoiser, latents, timestep, rows.conditioning.rows(rows.prompt_index, latents.device)
            )
        return self.sampler.policy.step(output, latents, rows.schedule, step_index)

    def _reference_transition(self, rows: Rollout, s: int):
        denoiser = self.reference_denoiser or self.family.denoiser
        disabled = nullcontext() if self.reference_denoiser is not None else adapters_disabled(denoiser)
        with torch.no_grad(), disabled:
            return self._transition(denoiser, rows, s)

    @property
    def _on_policy(self) -> bool:
        """Whether every micro-batch of a rollout is trained by the very weights that sampled it."""
        return self.args.micro_steps_per_rollout == self.args.gradient_accumulation_steps

    @property
    def _is_first_pass(self) -> bool:
        """Whether no optimiser update has happened since the rollout."""
        done = self.state.global_step * self.args.gradient_accumulation_steps
        return done % self.args.micro_steps_per_rollout == 0

    # ---- metrics -----------------------------------------------------------------------------------------------------

    def on_phase(self, phase: str, done: int, total: int) -> None:
        """Tells callbacks what the run is doing, and stops it if another process has failed."""
        self.rank_watch.check()
        self.tell("on_phase", phase=phase, done=done, total=total)

    def tell(self, event: str, **kwargs) -> None:
        """Calls the method `event`, which transformers' loop does not know, of the callbacks that have it."""
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, event):
                getattr(callback, event)(self.args, self.state, self.control, **kwargs)

    def arithmetic(self) -> list[str]:
        """What a rollout and an epoch come to; see [`~arithmetic.resolved_arithmetic`]."""
        work = count_work(
            self.args,
            len(self.reward_runner),
            len(self.preview_reward_runner),
            self.family.nfe_per_row,
            processes=self.geometry.num_processes,
        )
        num_prompts = None if is_stream(self.train_dataset) else len(self.train_dataset)
        return resolved_arithmetic(self.args, self.geometry, work, num_prompts)

    def _log_rollout(self, rollout: Rollout) -> None:
        errors = {f"reward_errors/{kind}": count for kind, count in self._count_errors().items()}
        counts = reward_counts(rollout, self.reward_runner.names)
        rewards = reward_metrics(rollout, self.reward_runner.names)
        for name, value in {**rewards, **errors, **prune_metrics(rollout), **audit_metrics(rollout)}.items():
            self._metrics.add(name, value, counts.get(name))
        scored = self.rank_watch.gather((~rollout.rewards.isnan()).sum()[None].cpu())
        if not sum(scored).item() and self.is_world_process_zero():
            warnings.warn(
                "no image of a rollout has a reward, so that nothing is learnt from it; look at the reward functions and the "
                "columns they read.",
                stacklevel=2,
            )
        warning = self._audit_watch.update(rollout)
        if warning is not None and self.is_world_process_zero():
            warnings.warn(warning, stacklevel=2)
        for name in ("nfe", "decodes", "preview_decodes", "reward_calls"):
            self._metrics.add(f"sampling/{name}", getattr(rollout.cost, name))

    def _count_errors(self) -> dict[str, int]:
        """Images that have no score by kind of error, since the last count; none unless errors are skipped."""
        errors = Counter()
        # Often one and the same, which the second time has none left.
        for runner in (self.reward_runner, self.preview_reward_runner):
            errors += runner.errors
            runner.errors.clear()
        # Every process tells of every kind, for all gather the same names.
        return {kind: errors[kind] for kind in REWARD_ERROR_KINDS} if self.args.on_reward_error == "skip" else {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the metrics gathered since the last log, averaged over micro-steps and processes."""
        if self._metrics and ("loss" in logs or "train_loss" in logs):
            weight = len(self.geometry.rows(self.accelerator.process_index))
            logs = {**logs, **self._metrics.drain(self.accelerator, weight)}
            seconds = self.sampler.timer.drain()
            seconds.update(self._timer.drain())
            logs.update({f"time/{phase}": value for phase, value in seconds.items()})
            if self.args.rollout_waves > 1:
                logs["sampling/reward_seconds_saved"] = self.sampler.saved.drain().get("reward", 0.0)
        super().log(logs, start_time)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        Samples one image per held-out prompt without noise and with fixed seeds, and scores it.

        Returns the mean and standard error over prompts of the weighted reward and of every reward function, those of
        `eval_reward_funcs` included; with `ema_decay` the averaged weights are evaluated, unless `eval_use_ema` is off.
        Warns, once each, of rewards that fell since the evaluation before training and are not trained on.

        Args:
            eval_dataset ([`~datasets.Dataset`], `list`, a `dict` of them, or `str`, *optional*): held-out prompts, or the
                name of one of the trainer's sets; those of the trainer when unset.
            ignore_keys: of [`~transformers.Trainer`]; does nothing.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`): what metric names begin with.

        Raises:
            ValueError: if there are no held-out prompts, or as [`~data.check_prompts`] and [`~data.check_rows`].
        """
        keep_printing()
        if isinstance(eval_dataset, str) and eval_dataset in (self.eval_dataset or ()):
            eval_dataset = {eval_dataset: self.eval_dataset[eval_dataset]}
        if eval_dataset is not None:
            eval_dataset = as_eval_prompts(eval_dataset, self.args.prompt_column)
        own = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(eval_dataset, dict):
            metrics = {}
            for name, dataset in eval_dataset.items():
                metrics.update(self.evaluate(dataset, metric_key_prefix=f"{metric_key_prefix}_{name}"))
            return metrics
        if eval_dataset is None:
            raise ValueError("`eval_dataset` is None; give held-out prompts to evaluate on.")
        if not any(eval_dataset is dataset for dataset in own):
            runners = [self.reward_runner, *filter(None, [self.eval_reward_runner])]
            eval_dataset = without_unread(eval_dataset, self.args.prompt_column, runners)
            check_prompts(eval_dataset, self.args.prompt_column, "eval_dataset", streams=False)
            check_rows(eval_dataset, self.args.prompt_column, "`eval_dataset`", runners, self.args.on_reward_error)

        readable_rows = readable(eval_dataset)
        rows = collate_rows([readable_rows[i] for i in range(len(readable_rows))])
        prompts, columns = self._split_columns(rows)
        names, scores = held_out_scores(self, prompts, columns)
        count_failed = self.args.on_reward_error == "skip"
        if self.is_world_process_zero():
            warn_of_silent_rewards(names, scores)
        weights = self.reward_runner.weights
        metrics = held_out_metrics(names, scores, weights, metric_key_prefix, count_failed)
        metrics |= self.paired_gains.update(self.state.global_step, prompts, names, scores, weights, metric_key_prefix)
        self.log(metrics)
        warning = self._hacking_watch.update(self.state.log_history)
        if warning is not None and self.is_world_process_zero():
            warnings.warn(warning, stacklevel=2)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def generate(
        self,
        prompts: Sequence[str],
        seed: int | None = None,
        adapter: bool = True,
        first_slot: int = 0,
        ema: bool = True,
    ) -> torch.Tensor:
        """
        One noise-free image per prompt, `(N, 3, height, width)` in [0, 1], fp32 on the CPU.

        Args:
            prompts (`Sequence[str]`): the prompts.
            seed (`int`, *optional*): fixes the initial latents, prompt by prompt; the run's seed when unset.
            adapter (`bool`, *optional*, defaults to `True`): whether the trained adapter is on; off is the base model.
            first_slot (`int`, *optional*, defaults to 0): position of the first prompt; fixes its seed.
            ema (`bool`, *optional*, defaults to `True`): with `ema_decay`, the averaged weights or those in training.

        Raises:
            ValueError: if `prompts` are no list of texts, or `adapter` is off and the whole denoiser is trained, so that there
                is no base model left.
        """
        if isinstance(prompts, str) or not len(prompts) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"`prompts` is {prompts!r}; give a list of texts.")
        sampler = self._make_sampler(
            self.sampler.policy.ode(),
            self.args.eval_num_inference_steps or self.args.num_inference_steps,
            num_generations=1,
            scorer=lambda prompts, images, columns, preview: torch.zeros(len(prompts), 1),
            reward_weights=torch.ones(1),
            on_progress=None,
        )
        sampler.seed = self.args.seed if seed is None else seed
        sampler.share_call_sizes(self.sampler)
        with self._inference(), self._weights(adapter, ema):
            rollout = sampler.rollout(
                self.family.denoiser,
                prompts,
                conditioning=self._encode(prompts),
                rollout_index=EVAL_ROLLOUT,
                first_slot=first_slot,
            )
        return rollout.images

    def predict(self, *args, **kwargs):
        """Of [`~transformers.Trainer`], which it would make logits; [`~ProGRPOTrainer.generate`] makes images."""
        raise NotImplementedError(
            "`predict` is for models with logits; use `generate` for images, `evaluate` for rewards."
        )

    def hyperparameter_search(self, *args, **kwargs):
        """Of [`~transformers.Trainer`], which makes the model anew for every trial; here a trainer has one, trained in place."""
        raise NotImplementedError(
            "`hyperparameter_search` is not supported: a trainer has one model, and every trial would train the last one's "
            "further; make a trainer for each trial, or start `trl-progrpo train` with other options."
        )

    @contextmanager
    def _weights(self, adapter: bool, ema: bool = True):
        """The weights to sample with: the base model's, the average's, or those in training."""
        if not adapter and not self.use_adapter:
            raise ValueError("`adapter=False` needs a LoRA run: full fine-tuning does not keep the base weights.")
        if not adapter:
            with adapters_disabled(self.family.denoiser):
                yield
        elif self.ema is not None and ema:
            parameters = averaged_tensors(self.family.denoiser)
            self.ema.store(parameters)
            self.ema.copy_to(parameters)
            try:
                yield
            finally:
                self.ema.restore(parameters)
        elif ema:
            with averaged(self.optimizer, averaged_tensors(self.family.denoiser)):
                yield
        else:
            yield

    # ---- saving and resuming -----------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """
        Writes what `pipeline.load_lora_weights(output_dir)` reads (without LoRA the pipeline, into checkpoints only the
        denoiser) and a model card.

        With an average, by `ema_decay` or of a schedule-free optimiser, it is that; the raw weights lie beside it, for resuming.
        """
        if not self.args.should_save and sharding_of(self.args) is None:
            return
        output_dir = os.path.expanduser(output_dir if output_dir is not None else self.args.output_dir)
        is_checkpoint = os.path.basename(os.path.abspath(output_dir)).startswith(f"{PREFIX_CHECKPOINT_DIR}-")
        os.makedirs(output_dir, exist_ok=True)
        with self._weights(adapter=True):
            save_weights(self, output_dir, whole=not is_checkpoint)
        if self.ema is not None or averages(self.optimizer):
            save_weights(self, output_dir, raw=True, whole=not is_checkpoint)
        if not self.args.should_save:
            return
        settings = json.dumps(portable_values(json.loads(self.args.to_json_string())), indent=2)
        Path(output_dir, "training_args.json").write_text(redact(settings, [self.args.hub_token]), encoding="utf-8")
        place = output_dir.replace(f"{STAGING}{os.sep}", "")
        write_model_card(self, output_dir, pictures=not is_checkpoint, place=place, **self._card_details)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        """Writes the model card into `output_dir`; what is given here stands on later cards too."""
        given = {"model_name": model_name, "dataset_name": dataset_name, "tags": tags}
        self._card_details |= {name: value for name, value in given.items() if value is not None}
        if self.is_world_process_zero():
            write_model_card(self, self.args.output_dir, **self._card_details)

    # ---- the Hub -----------------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Opens the repository; see [`~hub.open_repo`]."""
        if self.is_world_process_zero():
            self.hub_model_id = self._opened_repo or open_repo(self.args, token, private)
            self.push_in_progress = BackgroundPushes(hub_api(token or self.args.hub_token))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """
        Saves into `output_dir` and uploads it without checkpoints; see [`~transformers.Trainer.push_to_hub`].

        Args:
            kwargs: for [`create_model_card`].

        Returns:
            [`~huggingface_hub.CommitInfo`], a future of it if `blocking` is off, or `None` on all processes but the first
            and where the push failed: that is logged with what pushes again, for training must not be lost.

        Raises:
            ValueError: if the repository cannot be opened; the files are saved by then.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # It reads the files that are about to be written.
        self._finish_current_push()
        self.save_model(_internal_call=True)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.create_model_card(**kwargs)
        if not self.is_world_process_zero():
            return None
        future = push_run(self, commit_message, token, revision, private)
        return future.result() if blocking else future

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The base class calls it before the checkpoint is whole.
        if self._staging is None:
            push_checkpoint(self, checkpoint_folder)

    def _finish_current_push(self) -> None:
        if getattr(self, "push_in_progress", None) is not None:
            self.push_in_progress.wait_until_done()

    _staging: str | None = None
    """Where a checkpoint is being written."""

    def _get_output_dir(self, trial) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        write = super()._save_checkpoint
        save_checkpoint(self, lambda: write(model, trial), self._get_output_dir(trial))

    def _determine_best_metric(self, metrics, trial) -> bool:
        # With `save_strategy="best"` it decides on saving, after everybody else.
        return super()._determine_best_metric(metrics, trial) or self.stopped_by_signal

    @property
    def stopped_by_signal(self) -> bool:
        """Whether the last `train()` was ended by SIGTERM, before its time and with a checkpoint."""
        return self._stop_request.heeded

    def _run_epoch(self, *args, **kwargs) -> None:
        # The loop would find out that a resumed run is at its end after one step more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Trains; see [`~transformers.Trainer.train`].

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint folder of this trainer, or `True` for the
                newest in `output_dir`. The continued run equals one that was never interrupted.

        SIGTERM has it save a checkpoint after the step it is in, and return early: `stopped_by_signal` is set then.

        Raises:
            ValueError: if there is no such checkpoint, or it is damaged.
        """
        keep_printing()
        check_trained(self.family, self.model, self.use_adapter)
        resume_from_checkpoint = checkpoint_to_resume(self, resume_from_checkpoint)
        # Nothing of an earlier run of this object: its rollouts have the same indices.
        self.last_rollout, self._micro_batches_of, self._resumed_from = None, None, resume_from_checkpoint
        self._micro_steps_since_update, self.kept_step, self._gradients_checked = 0, None, False
        self._metrics.clear()
        self._loop_callback.keep_evaluations()
        stop = self._stop_request.listening(self.is_world_process_zero())
        with self.rank_watch.watching(), run_memory(), stop, what_is_trained_kept(self):
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        end_averaging(self.optimizer)
        return result

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if not self.is_deepspeed_enabled:
            self.initial_settings.take(self.optimizer, scheduler)
        return scheduler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        load_weights(self, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        # Who leaves in a hurry comes back to the weights in training.
        if not self.stopped_by_signal:
            end_averaging(self.optimizer)
            load_weights(self, self.state.best_model_checkpoint, to_train=False)
            self.kept_step = self.state.best_global_step

    kept_step: int | None = None
    """The step whose weights were loaded when training ended, with `load_best_model_at_end`."""

    _resumed_from: str | None = None

    def _restore_rollout(self, prompts: Sequence[str], rollout_index: int) -> Rollout | None:
        """The rollout that a checkpoint was saved in the middle of, or `None`."""
        if self._resumed_from is None:
            return None
        tensors = load_rollout(self._resumed_from, self.accelerator.process_index)
        self._resumed_from = None
        if tensors is None:
            return None
        if not self.args.offload_rollout:
            path = {
                name: tensors[name].to(self.accelerator.device) for name in ("latents", "means") if name in tensors
            }
            tensors |= path
        schedule = self.family.make_schedule(self.args.num_inference_steps)
        return Rollout(
            **tensors,
            step_indices=self.args.train_steps(self.stochastic_steps, rollout_index),
            conditioning=self._encode(prompts),
            schedule=schedule,
            rollout_index=rollout_index,
            first_slot=self.geometry.slots(self.accelerator.process_index).start,
        )
