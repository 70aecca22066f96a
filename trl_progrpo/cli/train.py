# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo train`: evaluate, train, evaluate again, and say what came of it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import CommandError, CommandParser, full_disk_errors, quieten_libraries, tracker_errors, user_errors


if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from ..progrpo_config import ProGRPOConfig
    from ..progrpo_trainer import ProGRPOTrainer
    from .arguments import ModelArguments, ScriptArguments, TrainParser


GRID_PROMPTS = 8
"""Columns of the before/after grid."""


def run(argv: Sequence[str]) -> int:
    """Parses `argv` and trains."""
    (script_args, model_args, training_args), launcher = read_run(argv, _parser)
    if script_args.dry_run:
        from .dry_run import dry_run

        return dry_run(script_args, model_args, training_args, launcher)
    if launcher is not None:
        from .launch import launch

        return launch(launcher)
    with full_disk_errors(training_args.output_dir):
        trainer = train(script_args, model_args, training_args)
    if trainer.stopped_by_signal:
        from ..stopping import EXIT_CODE

        return EXIT_CODE
    return 0


def _parser() -> TrainParser:
    from .arguments import TrainParser

    return TrainParser()


def read_run(
    argv: Sequence[str], make_parser: Callable[[], TrainParser]
) -> tuple[tuple[Any, ...], argparse.Namespace | None]:
    """
    The dataclasses that flags and YAML file make, and what is to be launched, `None` if this process is to do the work.

    Args:
        argv (`Sequence[str]`): the command line without the command's name.
        make_parser (`Callable`): makes the parser; called once the file's `env` is set.

    Raises:
        CommandError: for a mistake of the user's.
    """
    flags, config, config_path = read_config(argv)
    # Before the heavy imports: variables such as HF_ENDPOINT are read when huggingface_hub is imported.
    os.environ.update({str(key): str(value) for key, value in config.pop("env", {}).items()})
    from .launch import launch_arguments, split_launch

    parser = make_parser()
    launch_flags, flags, config = split_launch(parser, flags, config, config_path)
    # In a launching process too, where a mistake is told once and not by every process.
    parsed = parser.parse(*(_for_one_process(flags, config) if launch_flags else (flags, config)), config_path)
    if not launch_flags:
        return parsed, None
    again = ["train", *(["--config", config_path] if config_path else []), *flags]
    use_cpu = next(args.use_cpu for args in parsed if hasattr(args, "use_cpu"))
    return parsed, launch_arguments(launch_flags, again, use_cpu)


def _for_one_process(flags: Sequence[str], config: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Without a backend of torch.distributed: a process that has one looks for the others, and here they are still to come."""
    backend = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    backend.add_argument("--ddp_backend", "--ddp-backend")
    in_file = {key: value for key, value in config.items() if str(key).replace("-", "_") != "ddp_backend"}
    return backend.parse_known_args(list(flags))[1], in_file


def read_config(argv: Sequence[str]) -> tuple[list[str], dict[str, Any], str]:
    """
    Splits `--config FILE` off `argv`; returns the other flags, the file's keys and its name.

    Raises:
        CommandError: if the file is missing or no YAML mapping.
    """
    parser = CommandParser(prog="trl-progrpo train", add_help=False)
    parser.add_argument("--config", type=os.path.expanduser)
    known, flags = parser.parse_known_args(argv)
    if known.config is None:
        return flags, {}, ""
    from .config_file import load_yaml

    config = load_yaml(known.config)
    if not isinstance(config, dict) or not isinstance(config.get("env", {}), dict):
        raise CommandError(f"`--config` {known.config!r} must hold `key: value` lines (and `env`, if any, below it).")
    for key, value in config.get("env", {}).items():
        if not isinstance(value, str):
            raise CommandError(f"`env` holds {key!r} {value!r} in {known.config}; give a text, '' for an empty one.")
    return flags, config, known.config


def train(script_args: ScriptArguments, model_args: ModelArguments, training_args: ProGRPOConfig) -> ProGRPOTrainer:
    """
    A whole run: held-out reward and images before, training, both again, results and plots into `output_dir`, summary.

    Raises:
        CommandError: for a mistake of the user's.
    """
    quieten_libraries()
    from ..checkpoints import check_weights, what_is_trained_kept
    from ..validation import distinct_rows, with_gain_cases
    from .preflight import checkpoint_to_resume

    resume = checkpoint_to_resume(training_args)
    trainer, train_dataset, eval_dataset = _build(script_args, model_args, training_args)
    if resume is not None:
        with user_errors():
            check_weights(trainer, resume)
    main_process = trainer.is_world_process_zero()
    if main_process:
        _notice(script_args, training_args, train_dataset, eval_dataset)

    grid_rows = distinct_rows(
        eval_dataset if eval_dataset is not None else train_dataset, training_args.prompt_column, GRID_PROMPTS
    )
    # From here on a ValueError that this package did not raise itself is a defect, maybe the reward's: keep its traceback.
    with user_errors(ours_only=True), tracker_errors(), trainer.rank_watch.watching(), what_is_trained_kept(trainer):
        before = trainer.evaluate() if eval_dataset is not None else None
        images = [_generate(trainer, grid_rows)] if script_args.plot else []
        trainer.train(resume_from_checkpoint=resume)
        if trainer.stopped_by_signal:
            return _leave(trainer)
        after = _evaluate_after(trainer) if eval_dataset is not None else None
        images += [_generate(trainer, grid_rows)] if script_args.plot else []
        num_fixed, cases = len(grid_rows), []
        if script_args.plot:
            grid_rows, images, cases = with_gain_cases(trainer, _kept_step(trainer), grid_rows, images)
        # Not pushed yet: plots and the finished card go with it.
        trainer.save_model(_internal_call=True)
        trainer.save_state()
    files = {}
    if main_process:
        files = _write_results(script_args, trainer, before, after, grid_rows, images, cases, num_fixed)
    trainer.create_model_card(dataset_name=_hub_datasets(script_args))
    # Saved, then pushed, and told last of all: nothing that is printed may stand between a run and its results.
    pushed = None
    try:
        if training_args.push_to_hub:
            quieten_libraries()  # Training has switched the client's progress bars on again.
            pushed = trainer.push_to_hub()
    finally:
        if main_process:
            _tell(trainer, files)
    if pushed is not None:
        print(f"Pushed to {pushed.repo_url}")
    elif training_args.push_to_hub and main_process:
        print("Not pushed to the Hub; the reason, and how to push again, stand above.", file=sys.stderr)
    return trainer


def _tell(trainer: ProGRPOTrainer, files: dict[str, Path]) -> None:
    """Print what came of a run."""
    from ..model_card import loading_code
    from ..model_card.facts import describe_schedule
    from ..plots import prune_group_sizes
    from .summary import summary

    args, choices = trainer.args, trainer.schedule_choices
    summary(
        trainer.state.log_history,
        kept_step=trainer.kept_step,
        files=_saved_files(trainer, args.output_dir) | files,
        code=loading_code(trainer, args.output_dir),
        group_sizes=prune_group_sizes(args, choices),
        num_inference_steps=args.num_inference_steps,
        schedule=describe_schedule(args, choices) if choices else None,
    )


def _leave(trainer: ProGRPOTrainer) -> ProGRPOTrainer:
    """Says how to go on; what would come after the training is left to the run that does."""
    if trainer.is_world_process_zero():
        args, step = trainer.args, trainer.state.global_step
        print(
            f"trl-progrpo train: stopped by SIGTERM after step {step} of {trainer.state.max_steps}; run the same command with "
            f"`--resume_from_checkpoint {args.output_dir}/checkpoint-{step}` to go on from there.",
            file=sys.stderr,
        )
    # A launcher ends the other processes when one is gone.
    trainer.accelerator.wait_for_everyone()
    return trainer


def _build(script_args, model_args, training_args) -> tuple[ProGRPOTrainer, Dataset, Dataset | None]:
    from .data import load_prompts
    from .preflight import preflight

    train_dataset, eval_dataset = load_prompts(script_args, training_args.prompt_column)
    preflight(model_args, training_args)
    trainer = make_trainer(
        script_args,
        model_args,
        training_args,
        train_dataset,
        eval_dataset=eval_dataset,
        eval_reward_funcs=script_args.eval_reward_funcs,
    )
    return trainer, trainer.train_dataset, trainer.eval_dataset


def make_trainer(script_args, model_args, training_args, train_dataset, **evaluation: Any) -> ProGRPOTrainer:
    """
    The trainer of a run; its weights are loaded.

    Raises:
        CommandError: for a mistake of the user's.
    """
    from ..progrpo_trainer import ProGRPOTrainer
    from .data import named_data

    training_args.model_init_kwargs = init_kwargs(model_args, training_args)
    with named_data(script_args), user_errors():
        return ProGRPOTrainer(
            model=model_args.model_name_or_path,
            reward_funcs=script_args.reward_funcs,
            args=training_args,
            train_dataset=train_dataset,
            peft_config=lora_config(model_args),
            preview_reward_funcs=script_args.preview_reward_funcs,
            **evaluation,
        )


def init_kwargs(model_args: ModelArguments, training_args: ProGRPOConfig) -> dict[str, Any] | None:
    """`model_init_kwargs` with `model_revision`."""
    kwargs = training_args.model_init_kwargs or {}
    if model_args.model_revision != "main":
        kwargs = {"revision": model_args.model_revision, **kwargs}
    return kwargs or None


def lora_config(model_args: ModelArguments):
    """The [`~peft.LoraConfig`] of the arguments, `None` for full fine-tuning; targets left open are the family's."""
    if not model_args.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=model_args.lora_target_modules,
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
        init_lora_weights="gaussian",
    )


def _notice(script_args, training_args, train_dataset, eval_dataset) -> None:
    """What an attentive reader would ask about the data, on standard error."""
    if eval_dataset is None:
        print(
            "No held-out prompts, so no reward before and after training is measured; name a split, e.g. "
            '--dataset_train_split "train[:90%]" --dataset_test_split "train[90%:]".',
            file=sys.stderr,
        )
        return
    from ..data import is_stream

    if is_stream(train_dataset):
        return
    column = training_args.prompt_column
    held_out = set(eval_dataset[column])
    # Page by page: the training prompts of a large file need not fit into memory.
    pages = train_dataset.select_columns(column).iter(10_000)
    seen = len({prompt for page in pages for prompt in page[column] if prompt in held_out})
    if seen:
        print(f"{seen} of {len(held_out)} held-out prompts are also training prompts.", file=sys.stderr)


def _generate(trainer: ProGRPOTrainer, rows: list[dict[str, Any]]) -> torch.Tensor:
    return trainer.generate([row[trainer.args.prompt_column] for row in rows])


def _evaluate_after(trainer: ProGRPOTrainer) -> dict[str, float]:
    """The metrics of the weights that are kept, taken from the log if their step was evaluated."""
    kept = _kept_step(trainer)
    for entry in reversed(trainer.state.log_history):
        if "eval_reward" in entry and entry["step"] == kept:
            return {key: value for key, value in entry.items() if key.startswith("eval_")}
    return trainer.evaluate()


def _kept_step(trainer: ProGRPOTrainer) -> int:
    return trainer.kept_step or trainer.state.global_step


def _write_results(script_args, trainer, before, after, grid_rows, images, cases, num_fixed) -> dict[str, Path]:
    from .. import plots
    from ..report.record import without_nan
    from ..validation import validation_scores
    from .data import describe_data

    args, folder = trainer.args, Path(trainer.args.output_dir)
    log_history, written = trainer.state.log_history, {}
    if after is not None:
        results = {"step": _kept_step(trainer), "before": before, "after": after}
        path = folder / "eval_results.json"
        path.write_text(json.dumps(without_nan(results), indent=2) + "\n", encoding="utf-8")
        written["results"] = path
    if not script_args.plot:
        return written
    prompts = [row[args.prompt_column] for row in grid_rows]
    scores = [validation_scores(trainer, grid_rows, batch) for batch in images]
    written["images before and after"] = plots.image_grid(
        images,
        ["before", "after"],
        [f"{case}: {prompt}" if case else prompt for case, prompt in zip(cases, prompts)],
        folder / "before_after.png",
        scores,
        title=_title(trainer, [row[:num_fixed] for row in scores]),
    )
    written["reward curve"] = plots.reward_curve(log_history, folder / "reward_curve.png")
    written["prune funnel"] = plots.prune_funnel(
        log_history,
        folder / "prune_funnel.png",
        plots.prune_group_sizes(args, trainer.schedule_choices),
        args.num_inference_steps,
    )
    written["report"] = _report(trainer, prompts, images, scores, cases, num_fixed, describe_data(script_args))
    return {label: path for label, path in written.items() if path is not None}


def _title(trainer: ProGRPOTrainer, scores) -> str:
    """The held-out gain, where it was measured, and that of the images that are shown whatever comes of them."""
    from ..heldout import evaluation_table
    from ..words import change_in_words, counted, number, with_error

    lines = []
    for row in evaluation_table(trainer.state.log_history, trainer.reward_runner.names, trainer.kept_step)[:1]:
        if row["gain"] is not None:
            change = (
                f"{number(row['before'])} → {number(row['after'])}, {with_error(row['gain'], row['gain_stderr'], '+')}"
            )
            lines.append(f"Held-out {row['name']} {change} over {counted(row['num_prompts'], 'image')}")
    shown = change_in_words(*scores)
    return "\n".join([*lines, *([f"The first {len(scores[0])}: {shown}"] if shown else [])])


def _report(trainer: ProGRPOTrainer, prompts, images, scores, cases, num_fixed: int, data: str) -> Path | None:
    from ..report import write_report
    from ..report.record import record_run

    folder = trainer.args.output_dir
    try:
        record_run(trainer, prompts, images, ["before", "after"], scores, cases, num_fixed, data)
        return write_report(folder, Path(folder) / "report.html")
    # The run has its results by now, and may still have them to push: a page about it must not cost them.
    except Exception as error:
        print(f"The report could not be written ({error}); try `trl-progrpo report {folder}`.", file=sys.stderr)
        return None


def _hub_datasets(script_args: ScriptArguments) -> list[str] | None:
    """Names on the Hub of the prompts that were trained on, for the model card."""
    from ..model_card import name_on_hub
    from .data import BUILDERS

    paths = [entry.path for entry in script_args.datasets or []] or [script_args.dataset_name]
    names = [path for path in paths if path not in BUILDERS.values() and name_on_hub(path)]
    return list(dict.fromkeys(names)) or None


def _saved_files(trainer: ProGRPOTrainer, output_dir: str) -> dict[str, Path]:
    from ..adapters import ADAPTER_FILE

    folder = Path(output_dir)
    weights = {"adapter": folder / ADAPTER_FILE} if trainer.use_adapter else {"pipeline": folder / "model_index.json"}
    return {**weights, "model card": folder / "README.md"}
