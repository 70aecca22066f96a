# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Pushing a run to the Hub: refused before it starts if it cannot work, and without loss if it fails later."""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Iterable
from concurrent.futures import Future, wait
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from . import __version__


if TYPE_CHECKING:
    from .progrpo_config import ProGRPOConfig
    from .progrpo_trainer import ProGRPOTrainer


logger = logging.getLogger(__name__)

NEVER_PUSHED = ("checkpoint-*", "_*", ".*", "*_raw/*", "*rollout_*.safetensors", "*.pt", "*.pth", "*.bin")
"""Files of an output folder that stay local: checkpoints with their optimiser states, hidden files, the raw weights beside
the average of a full fine-tune, rollouts, and pickles."""

NEVER_PUSHED_OF_CHECKPOINTS = (".*", "*rollout_*.safetensors")
"""The same for a checkpoint that is pushed to be resumed from."""

_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def redact(text: str, secrets: Iterable[str | None] = ()) -> str:
    """`text` without the user's Hub token, other `secrets`, whatever looks like a Hub token, and passwords in addresses."""
    for secret in (*secrets, get_token()):
        if secret and len(secret) > 5:
            text = text.replace(secret, "***")
    return _CREDENTIALS.sub("***", _TOKEN.sub("***", text))


def check_push(args: ProGRPOConfig) -> None:
    """
    What can be known without asking the Hub.

    Raises:
        ValueError: if the name is none, there is no token, or the Hub may not be asked at all.
    """
    _repo_name(args)
    if constants.HF_HUB_OFFLINE:
        raise ValueError("`push_to_hub` is set, but so is HF_HUB_OFFLINE; unset one of them.")
    if not (args.hub_token or get_token()):
        raise ValueError(
            "`push_to_hub` is set, but there is no Hub token; run `hf auth login`, set HF_TOKEN, or leave `push_to_hub` off."
        )


def open_repo(args: ProGRPOConfig, token: str | None = None, private: bool | None = None) -> str:
    """
    Creates the repository (and the branch `hub_revision`) if it is not there, and makes sure that it can be written to.

    Returns:
        `str`: its full name.

    Raises:
        ValueError: if it is not one that this token may write to, or is public where `hub_private_repo` asks for private.
    """
    name = _repo_name(args)
    private = args.hub_private_repo if private is None else private
    api = hub_api(token or args.hub_token)
    try:
        repo_id = api.create_repo(name, private=private, exist_ok=True).repo_id
        is_private = not private or api.model_info(repo_id).private
        if args.hub_revision:
            api.create_branch(repo_id, branch=args.hub_revision, exist_ok=True)
        # Creating "if it is not there" succeeds on anybody's public repository. This asks for the right to write, and
        # uploads nothing: a file this small travels with the commit.
        api.preupload_lfs_files(repo_id, [CommitOperationAdd("README.md", b"\n")], revision=args.hub_revision)
    # httpx, httpx2, OSError, the client's own: which it is depends on the client's version.
    except Exception as error:
        raise ValueError(
            f"`push_to_hub` cannot write to {name!r} on {api.endpoint} ({redact(_reason(error))}); {_cure(error)}"
        ) from error
    if not is_private:
        raise ValueError(
            f"`hub_private_repo` is True, but {repo_id!r} exists and is public; make it private in its settings, or choose "
            "another `hub_model_id`."
        )
    return repo_id


def _repo_name(args: ProGRPOConfig) -> str:
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"`hub_model_id` is {name!r}, which is no name for a repository ({_reason(error)}); use `user/name`."
        ) from error
    return name


def hub_api(token: str | None = None) -> HfApi:
    """A client of the Hub; uploads it makes in the background are made one after the other."""
    return HfApi(token=token, library_name="trl_progrpo", library_version=__version__)


def upload(
    api: HfApi,
    repo_id: str,
    folder: str,
    commit_message: str,
    revision: str | None = None,
    path_in_repo: str | None = None,
    private: bool | None = None,
) -> CommitInfo | None:
    """
    Uploads a folder without [`NEVER_PUSHED`]. A failure is no exception but a logged warning that says how to push again:
    the run that calls this has results which must outlive the network.

    Args:
        api ([`~huggingface_hub.HfApi`]): see [`hub_api`].
        repo_id (`str`): the repository.
        folder (`str`): the folder, output folder or checkpoint.
        commit_message (`str`): first line of the commit.
        revision (`str`, *optional*): branch; `main` when unset.
        path_in_repo (`str`, *optional*): subfolder of the repository, for a checkpoint; its root when unset.
        private (`bool`, *optional*): for the command that is named, should the repository have gone.

    Returns:
        [`~huggingface_hub.CommitInfo`], or `None` if it failed.
    """
    ignored = NEVER_PUSHED if path_in_repo is None else NEVER_PUSHED_OF_CHECKPOINTS
    try:
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            path_in_repo=path_in_repo,
            commit_message=commit_message,
            revision=revision,
            ignore_patterns=list(ignored),
        )
    except Exception as error:
        command, cure = push_command(repo_id, folder, revision, path_in_repo, private), _cure(error)
        logger.warning(
            f"The push to {repo_id} failed ({redact(_reason(error), [api.token])}). Nothing is lost: the files are in "
            f"{folder!r}. {cure[0].upper()}{cure[1:]} To push again:\n\n    {command}\n"
        )
        return None


def push_command(
    repo_id: str,
    folder: str,
    revision: str | None = None,
    path_in_repo: str | None = None,
    private: bool | None = None,
) -> str:
    """The shell command that uploads what [`upload`] does; excludes are named where there is something to exclude."""
    ignored = NEVER_PUSHED if path_in_repo is None else NEVER_PUSHED_OF_CHECKPOINTS
    paths = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
    excludes = [pattern for pattern in ignored if any(fnmatch(path, pattern) for path in paths)]
    command = ["hf", "upload", repo_id, folder, path_in_repo or "."]
    command += [part for pattern in excludes for part in ("--exclude", pattern)]
    command += ["--revision", revision] if revision else []
    command += ["--private"] if private else []
    return shlex.join(command)


class BackgroundPushes:
    """Uploads that go on while training does, one after the other; none of them raises."""

    def __init__(self, api: HfApi):
        self.api = api
        self.jobs: list[Future] = []

    def start(self, repo_id: str, folder: str, commit_message: str, **kwargs: Any) -> Future:
        """As [`upload`], in the background."""
        future = self.api.run_as_future(upload, self.api, repo_id, folder, commit_message, **kwargs)
        self.jobs.append(future)
        return future

    def is_done(self) -> bool:
        return all(job.done() for job in self.jobs)

    def wait_until_done(self) -> None:
        wait(self.jobs)
        self.jobs.clear()


def push_run(
    trainer: ProGRPOTrainer, commit_message: str, token: str | None, revision: str | None, private: bool | None
) -> Future:
    """Uploads the output folder as it is; what is `None` is as the arguments of the run have it."""
    args = trainer.args
    pushes = trainer.push_in_progress if token is None else BackgroundPushes(hub_api(token))
    return pushes.start(
        trainer.hub_model_id,
        args.output_dir,
        commit_message,
        revision=revision or args.hub_revision,
        private=args.hub_private_repo if private is None else private,
    )


def push_checkpoint(trainer: ProGRPOTrainer, checkpoint_folder: str) -> None:
    """
    Starts the uploads that `hub_strategy` asks for when a checkpoint has been written; none while others go on. Every process
    must call it, for together they write what is uploaded.
    """
    import torch

    args, first = trainer.args, trainer.is_world_process_zero()
    if args.hub_strategy == "end":
        return
    pushes = trainer.push_in_progress if first else None
    # Only the first process knows of uploads.
    due = torch.tensor([float(first and (pushes.is_done() or args.hub_always_push))])
    if not trainer.rank_watch.gather(due)[0].item():
        return
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    with trainer.rank_watch.together():
        if first:
            # An upload in progress reads the files that are written now.
            pushes.wait_until_done()
        trainer._save(args.output_dir)
    if not first:
        return
    message = f"Training in progress, step {trainer.state.global_step}"
    options = {"revision": args.hub_revision, "private": args.hub_private_repo}
    pushes.start(trainer.hub_model_id, args.output_dir, message, **options)
    if args.hub_strategy in ("checkpoint", "all_checkpoints"):
        name = os.path.basename(checkpoint_folder) if args.hub_strategy == "all_checkpoints" else "last-checkpoint"
        pushes.start(trainer.hub_model_id, checkpoint_folder, f"{message}, checkpoint", path_in_repo=name, **options)
        if args.save_total_limit is not None:
            # Old checkpoints are deleted next, this one perhaps soon.
            pushes.wait_until_done()


def _reason(error: BaseException) -> str:
    """The first line of the error at the root: what wraps it says only which file it was."""
    while error.__cause__ is not None and not hasattr(error, "response"):
        error = error.__cause__
    text = str(error).strip()
    # The client's own lines about how to report an error come later, its status line first.
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _cure(error: BaseException) -> str:
    while error is not None and getattr(error, "response", None) is None:
        error = error.__cause__
    status = getattr(error.response, "status_code", None) if error is not None else None
    if status == 401:
        return "log in again with `hf auth login`, or set HF_TOKEN to a token that is valid."
    if status == 403:
        return (
            "choose a `hub_model_id` of your own or of an organisation that you may write to, or a token with the right to "
            "write."
        )
    return "check your connection, and https://status.huggingface.co."
