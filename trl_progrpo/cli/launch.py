# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Flags of `accelerate launch` given to `trl-progrpo train`, as TRL's command takes them: the run is started through it."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

from .base import CommandError, refuse_unknown_flags
from .config_file import to_values


LAUNCHED = "TRL_PROGRPO_LAUNCHED"
"""Environment variable that tells a process that it was started from here."""

_OURS = {"training_script", "module", "no_python", "help"}

_PATHS = {
    "config_file", "log_dir", "deepspeed_config_file", "deepspeed_hostfile", "mpirun_hostfile", "offload_optimizer_nvme_path",
    "offload_param_nvme_path",
}  # fmt: skip
"""Options of the launcher that are files or folders here."""


def split_launch(
    parser: argparse.ArgumentParser, flags: Sequence[str], config: Mapping[str, Any], config_path: str
) -> tuple[list[str], list[str], dict[str, Any]]:
    """
    Tells what is meant for the launcher from what is meant for the training; what `parser` knows is the training's.

    Args:
        parser (`argparse.ArgumentParser`): knows the options of the training.
        flags (`Sequence[str]`): flags without `--config`.
        config (`Mapping`): keys of the YAML file.
        config_path (`str`): its name, for messages.

    Returns:
        Flags for `accelerate launch`, those of the file first; the other flags; the other keys.

    Raises:
        CommandError: for a flag that neither knows.
    """
    unknown = parser.parse_known_args(list(flags))[1]
    own_keys = {action.dest for action in parser._actions}
    foreign = {key: value for key, value in config.items() if str(key).replace("-", "_") not in own_keys}
    if not unknown and not foreign:
        return [], list(flags), dict(config)

    options = launch_options()
    keys = {action.dest: action for action in options.values()}
    for_launch = {key: value for key, value in foreign.items() if str(key).replace("-", "_") in keys}
    rest = {key: value for key, value in config.items() if key not in for_launch}
    if was_launched():
        # The file is read by every process; the launcher has already done what it says.
        return [], list(flags), rest
    refuse_unknown_flags(parser, _not_in(unknown, options), options)
    launch = [part for key, value in for_launch.items() for part in _as_flag(keys, key, value, config_path)]
    return launch + unknown, _without(flags, unknown), rest


def was_launched() -> bool:
    """Whether this process is one that a launcher started, here or by hand."""
    return LAUNCHED in os.environ or "LOCAL_RANK" in os.environ


def launch_arguments(launch: Sequence[str], training: Sequence[str], use_cpu: bool = False) -> argparse.Namespace:
    """
    What `accelerate launch` makes of `launch`, running `trl-progrpo` with the arguments `training`.

    Raises:
        CommandError: for a value that it does not take, or an unknown `--accelerate_config`.
    """
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()

    def refuse(message: str):
        raise CommandError(f"{message}; see `accelerate launch --help`.")

    parser.error = refuse
    for action in parser._actions:
        if action.dest in _PATHS:
            action.type = os.path.expanduser
    arguments = parser.parse_args([*_named_config(launch), "--module", "trl_progrpo.cli", *training])
    if arguments.training_script != "trl_progrpo.cli":
        raise CommandError(f"unexpected argument {arguments.training_script!r}; values follow a flag.")
    for name in ("num_processes", "num_machines"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise CommandError(f"`--{name}` is {value}; use at least 1.")
    file = _read_config_file(arguments.config_file) if arguments.config_file is not None else None
    _check_machines(arguments, file)
    several = arguments.num_processes is not None and arguments.num_processes > 1
    if use_cpu and several and arguments.config_file is None and not arguments.use_fsdp:
        # Otherwise accelerate counts GPUs, finds none, and silently starts one process.
        arguments.multi_gpu = True
    return arguments


def launch(arguments: argparse.Namespace) -> int:
    """Runs `accelerate launch`; returns the exit status. What went wrong has been told by the processes themselves."""
    import subprocess

    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ[LAUNCHED] = "1"
    # What processes that are told to stop get for their step and their checkpoint; torch would kill them after 30 seconds.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    try:
        with _passing_sigterm_on(), _ending_stopped_processes():
            launch_command(arguments)
    except subprocess.CalledProcessError as error:
        return _as_in_a_shell(error.returncode)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        return _as_in_a_shell(error.get_first_failure()[1].exitcode)
    except (ValueError, ImportError) as error:
        raise CommandError(f"accelerate could not launch the run: {error}") from error
    finally:
        del os.environ[LAUNCHED]
    return 0


def _as_in_a_shell(status: int) -> int:
    """Of a process that a signal ended, 128 and the signal; Python has it negative."""
    return status if status >= 0 else 128 - status


@contextmanager
def _passing_sigterm_on() -> Iterator[None]:
    """A single process is started without anybody to tell it; of several, torch's launcher takes care, from its start on."""
    import psutil

    def pass_on(signum, frame):
        children = psutil.Process().children()
        for child in children:
            child.send_signal(signum)
        if not children:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _ending_stopped_processes() -> Iterator[None]:
    """
    Kills processes that are stopped, as by SIGSTOP, once another has ended: they do not heed the SIGTERM of torch's
    launcher, which would wait for them as long as a process may take to save a checkpoint.
    """
    import psutil

    done = threading.Event()

    def watch():
        seen: set[psutil.Process] = set()
        while not done.wait(1.0):
            states = {}
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    states[child] = child.status()
            seen |= set(states)
            if any(states.get(child, psutil.STATUS_ZOMBIE) == psutil.STATUS_ZOMBIE for child in seen):
                for child in (child for child, state in states.items() if state == psutil.STATUS_STOPPED):
                    with suppress(psutil.NoSuchProcess):
                        child.kill()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def accelerate_configs() -> dict[str, str]:
    """Files of the configurations that come with TRL and with this package, by name; of two of one name, this package's."""
    folders = [resources.files(package).joinpath("accelerate_configs") for package in ("trl", "trl_progrpo")]
    found: dict[str, str] = {}
    for folder in folders:
        found |= {Path(item.name).stem: str(item) for item in folder.iterdir() if item.name.endswith(".yaml")}
    return dict(sorted(found.items()))


def launch_options() -> dict[str, argparse.Action]:
    """`accelerate launch`'s options by flag, with TRL's `--accelerate_config`."""
    from accelerate.commands.launch import launch_command_parser

    options = {
        flag: action
        for action in launch_command_parser()._actions
        for flag in action.option_strings
        if action.dest not in _OURS and flag.startswith("--")
    }
    return options | {"--accelerate_config": argparse.Action(["--accelerate_config"], "accelerate_config")}


def _named_config(launch: Sequence[str]) -> list[str]:
    """`--accelerate_config NAME` as `--config_file FILE`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--accelerate_config", "--accelerate-config", type=os.path.expanduser)
    try:
        known, rest = parser.parse_known_args(list(launch))
    except argparse.ArgumentError as error:
        raise CommandError("`--accelerate_config` has no value; give a file or a name.") from error
    name = known.accelerate_config
    if name is None:
        return list(launch)
    if not Path(name).is_file():
        configs = accelerate_configs()
        if name not in configs:
            raise CommandError(f"`--accelerate_config` {name!r} is neither a file nor one of {', '.join(configs)}.")
        name = configs[name]
    return ["--config_file", name, *rest]


def _check_machines(arguments: argparse.Namespace, file: Any) -> None:
    """What would let machines wait for each other for minutes, or leave some of their processes out."""
    machines, processes, rank, address = (
        getattr(arguments if getattr(arguments, name) is not None else file, name, None)
        for name in ("num_machines", "num_processes", "machine_rank", "main_process_ip")
    )
    if machines is None or machines == 1:
        return
    if processes is not None and processes % machines:
        raise CommandError(
            f"`--num_processes` is {processes} on {machines} machines (`--num_machines`); it counts those of all machines, so "
            f"use a multiple of {machines}."
        )
    if rank is None or not 0 <= rank < machines:
        raise CommandError(
            f"`--machine_rank` is {rank} with {machines} machines (`--num_machines`); give 0 on the first machine, 1 on the "
            "second, and so on."
        )
    if not address:
        raise CommandError(
            f"`--main_process_ip` is not given with {machines} machines (`--num_machines`); give the address of the first one, "
            "on all of them."
        )


def _read_config_file(path: str) -> Any:
    """Reads it as accelerate will."""
    from accelerate.commands.config.config_args import load_config_from_file
    from yaml import YAMLError

    try:
        return load_config_from_file(path)
    # A file that holds no mapping is found out by whatever it lacks.
    except (OSError, ValueError, TypeError, AttributeError, YAMLError) as error:
        if not Path(path).is_file():
            raise CommandError(
                f"`--config_file` {path!r} is no file; give one that `accelerate config` wrote."
            ) from error
        raise CommandError(
            f"`--config_file` {path!r} is no configuration of accelerate ({str(error).rstrip('.')}); give one that `accelerate "
            "config` wrote."
        ) from error


def _not_in(unknown: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Flags that the launcher does not know either, and words before the first flag."""
    stray = [] if not unknown or unknown[0].startswith("-") else [unknown[0]]
    flags = [token for token in unknown if token.startswith("-") and not token.lstrip("-")[:1].isdigit()]
    known = set(options) | {flag.replace("_", "-") for flag in options}
    return stray + [flag for flag in flags if flag.split("=")[0] not in known]


def _as_flag(keys: Mapping[str, argparse.Action], key: str, value: Any, config_path: str) -> list[str]:
    name = str(key).replace("-", "_")
    if isinstance(value, (dict, list)) or value is None:
        raise CommandError(f"`{key}` is {value!r} in {config_path}; give one value.")
    plain = to_values(value)
    if keys[name].nargs == 0:
        if not isinstance(plain, bool):
            raise CommandError(f"`{key}` is {value!r} in {config_path}; give true or false.")
        return [f"--{name}"] if plain else []
    return [f"--{name}", str(value).lower() if isinstance(plain, bool) else str(value)]


def _without(flags: Sequence[str], unknown: Sequence[str]) -> list[str]:
    """`flags` less `unknown`, which stand in it in this order."""
    left, kept = list(unknown), []
    for token in flags:
        if left and token == left[0]:
            left.pop(0)
        else:
            kept.append(token)
    return kept
