# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""One call of one reward function: what it is given, how long it may take, and what is wrong with what it returns."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import threading
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from os.path import basename
from typing import Any, Literal, get_args

import torch

from ..words import counted
from .base import RewardFunc


RewardErrorKind = Literal["exception", "timeout", "not_finite", "wrong_length", "wrong_type"]
REWARD_ERROR_KINDS: tuple[str, ...] = get_args(RewardErrorKind)


_LARGEST = torch.finfo(torch.float32).max


class RewardError(ValueError):
    """
    A reward function did not do its part.

    Args:
        message (`str`): one sentence with the function's name and what to do.
        kind (`str`): `"exception"`, `"timeout"`, `"not_finite"`, `"wrong_length"` or `"wrong_type"`.
        rows (`Sequence[int]`, *optional*): the images that have no score because of it; all of the call when unset.
        scores (`list[float]`, *optional*): of all images of the call, NaN at `rows`; only where `rows` is set.
        divisible (`bool`, *optional*, defaults to `False`): whether smaller calls may find the image that is to blame.
    """

    def __init__(
        self,
        message: str,
        kind: RewardErrorKind,
        rows: Sequence[int] | None = None,
        scores: list[float] | None = None,
        divisible: bool = False,
    ):
        super().__init__(message)
        self.kind, self.rows, self.scores, self.divisible = kind, rows, scores, divisible

    def __reduce__(self):
        # An exception is pickled with its message alone, and a process pool would break on it.
        return type(self), (str(self), self.kind, self.rows, self.scores, self.divisible)


def accepted_keywords(function: RewardFunc, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return those of `keywords` that `function` takes: the ones it names (of a network, its `forward`), and in its `**kwargs`
    those of its attribute `dataset_columns`, and `preview`, or all where it has no such attribute.
    """
    names = named_keywords(function)
    if takes_all_keywords(function):
        declared = getattr(function, "dataset_columns", None)
        names |= (
            set(keywords)
            if declared is None
            else {"preview", *([declared] if isinstance(declared, str) else declared)}
        )
    return {name: value for name, value in keywords.items() if name in names}


def named_keywords(function: RewardFunc) -> set[str]:
    """Return the parameters that `function` names."""
    return {name for name, parameter in _parameters(function).items() if parameter.kind is not parameter.VAR_KEYWORD}


def takes_all_keywords(function: RewardFunc) -> bool:
    """Whether `function` has `**kwargs`."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in _parameters(function).values())


def wanted_arguments(function: RewardFunc, given: Collection[str]) -> list[str]:
    """
    Parameters of `function` that have no default and are not among `given`. Of a decorated function, those of its wrapper:
    what that adds, nobody else can give.
    """
    catch_all = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [
        name
        for name, parameter in _parameters(function, follow_wrapped=False).items()
        if parameter.default is parameter.empty and parameter.kind not in catch_all and name not in given
    ]


def refused_arguments(function: RewardFunc, given: Sequence[str]) -> list[str]:
    """Return those of `given` for which a call of `function` by keyword would raise."""
    parameters = _parameters(function, follow_wrapped=False)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    by_position = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL
    return [n for n in given if (parameters[n].kind in by_position if n in parameters else not takes_all)]


def _parameters(function: RewardFunc, follow_wrapped: bool = True) -> Mapping[str, inspect.Parameter]:
    function = function.forward if isinstance(function, torch.nn.Module) else function
    # `torch.no_grad()` and its like hand on what they are given.
    while getattr(function, "__globals__", {}).get("__name__") == "torch.utils._contextlib":
        function = function.__wrapped__
    try:
        return inspect.signature(function, follow_wrapped=follow_wrapped).parameters
    except ValueError:  # Some of those written in C have no signature.
        return inspect.signature(lambda prompts, images: None).parameters


def begin_call(
    name: str,
    function: RewardFunc,
    prompts: Sequence[str],
    images: Any,
    keywords: dict[str, Any],
    timeout: float | None,
) -> Callable[[], list[float]]:
    """
    Calls `function`, and returns what waits for its scores: coroutines of several functions wait at the same time.

    Args:
        name (`str`): what errors call the function.
        function ([`~rewards.RewardFunc`]): the reward.
        prompts (`Sequence[str]` of length `B`): the prompt of each image.
        images (`list[PIL.Image.Image]` or `torch.Tensor`): as the function declares.
        keywords (`dict`): of which it is given those it takes.
        timeout (`float`, *optional*): seconds. A function that is not a coroutine then runs in a thread of its own, which
            is left to itself when the time is over, for Python cannot stop it.

    Returns:
        `Callable`: returns one float per image, NaN for `None`; raises [`RewardError`].
    """
    expected, version, given_up = len(prompts), _version(images), threading.Event()
    keywords = {**accepted_keywords(function, keywords), "prompts": list(prompts), "images": images}
    try:
        if timeout is not None and not inspect.iscoroutinefunction(function):
            values = _in_thread(function, keywords, images, given_up)
        else:
            values = function(**keywords)
        if inspect.isawaitable(values):
            values = _begin(values)
    except Exception as error:
        failure = _failure(name, error, expected)
        return failing(failure)

    def finish() -> list[float]:
        result = values
        if isinstance(values, Future):
            try:
                result = values.result(timeout)
            except Exception as error:
                late = isinstance(error, TimeoutError) and not values.done()
                values.cancel()
                given_up.set()
                raise (_late(name, timeout, expected) if late else _failure(name, error, expected)) from error
        if _version(images) != version:
            raise RewardError(
                f"reward function `{name}`, or one that runs beside it, has changed `images` in place, which other functions, "
                "logs and pictures read too; let it work on `images.clone()`.",
                "exception",
            )
        return check_scores(name, result, expected)

    return finish


def _version(images: Any) -> int | None:
    """Changes with every operation in place; tensors of inference mode do not count them."""
    return images._version if isinstance(images, torch.Tensor) and not images.is_inference() else None


def check_scores(name: str, values: Any, expected: int) -> list[float]:
    """
    What a reward function returned, as `expected` floats; NaN for `None`.

    Raises:
        RewardError: if it is not one finite number or `None` per image; tells the first image that has none.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().tolist()
    if isinstance(values, (str, dict, set, frozenset)) or not hasattr(values, "__len__"):
        raise _not_a_list(name, type(values).__name__, expected, "wrong_type")
    if len(values) != expected:
        raise _not_a_list(name, f"{len(values)} values", expected, "wrong_length")
    # A Series of pandas is read by its index otherwise.
    values = list(values)
    scores, bad = [], []
    for index, value in enumerate(values):
        number = _number(value)
        scores.append(math.nan if number is None else number)
        # Also what is infinite once it is one of many in fp32.
        if value is not None and not abs(scores[-1]) <= _LARGEST:
            bad.append(index)
    if bad:
        value, number = values[bad[0]], _number(values[bad[0]])
        raise RewardError(
            f"reward function `{name}` returned {repr(value) if number is None else number} for image {bad[0]}; return a "
            f"{'number' if number is None else 'finite number'}, or None where the reward does not apply.",
            "wrong_type" if number is None else "not_finite",
            bad,
            [math.nan if index in bad else score for index, score in enumerate(scores)],
        )
    return scores


def _number(value: Any) -> float | None:
    """What `float()` takes is a number, of whatever type; infinite where it has more digits than a float."""
    if isinstance(value, str):  # float("0.5") is a number
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()


def _begin(values: Awaitable) -> Future:
    """
    Starts a coroutine in the process's event loop. One loop for all calls: clients that a reward function keeps open
    belong to the loop they were made in.
    """
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
            threading.Thread(target=_run_loop, args=(_loop, device), name="async-rewards", daemon=True).start()

    async def wait():
        return await values

    return asyncio.run_coroutine_threadsafe(wait(), _loop)


def _run_loop(loop: asyncio.AbstractEventLoop, device: int | None) -> None:
    if device is not None:
        torch.cuda.set_device(device)
    loop.run_forever()


def _forget_loop() -> None:
    global _loop, _loop_lock
    _loop, _loop_lock = None, threading.Lock()


# A fork, such as `notebook_launcher` makes, has the loop and not the thread that it runs in.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_loop)


_call = threading.local()


def given_up_event() -> threading.Event | None:
    """For a reward function: set once nobody waits for this call of it any more; `None` where nobody could stop waiting."""
    return getattr(_call, "given_up", None)


def _in_thread(function: RewardFunc, keywords: dict[str, Any], images: Any, given_up: threading.Event) -> Future:
    """Runs `function` in a thread; gradient mode, CUDA device and stream, which threads do not inherit, are the caller's."""
    future, gradients = Future(), torch.is_grad_enabled()
    on_gpu = isinstance(images, torch.Tensor) and images.is_cuda
    device = torch.cuda.device(torch.cuda.current_device()) if torch.cuda.is_initialized() else nullcontext()
    stream = torch.cuda.stream(torch.cuda.current_stream(images.device)) if on_gpu else nullcontext()

    future.set_running_or_notify_cancel()

    def run():
        _call.given_up = given_up
        try:
            with torch.set_grad_enabled(gradients), device, stream:
                values = function(**keywords)
                if inspect.isawaitable(values):
                    values = _begin(values).result()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(values)

    # A daemon, unlike the threads of a pool: one that hangs does not keep the process alive.
    threading.Thread(target=run, name="reward-with-timeout", daemon=True).start()
    return future


def failing(error: Exception) -> Callable[[], list[float]]:
    """Return what raises `error` in place of scores."""

    def finish() -> list[float]:
        raise error

    return finish


def _late(name: str, timeout: float | None, expected: int) -> RewardError:
    return RewardError(
        f"reward function `{name}` took longer than `reward_timeout` of {timeout:g} s for {counted(expected, 'image')}; "
        "raise it, or make the function faster.",
        "timeout",
    )


def _failure(name: str, error: Exception, expected: int) -> RewardError:
    if is_own_sentence(error):
        # It says what to do; the function is not the user's to mend.
        message = str(error) if f"`{name}`" in str(error) else f"reward `{name}`: {error}"
    else:
        message = (
            f"reward function `{name}` raised {type(error).__name__}: {error}{raised_at(error)} while scoring "
            f"{counted(expected, 'image')}; mend it, or let it return None for what it cannot score."
        )
    failure = RewardError(
        message,
        "timeout" if isinstance(error, TimeoutError) else "exception",
        # Where a server is away, smaller calls only wait longer.
        divisible=expected > 1 and not isinstance(error, (TimeoutError, ConnectionError)),
    )
    failure.__cause__ = error
    return failure


def raised_at(error: Exception) -> str:
    """File and line in brackets, after a space."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""


def is_own_sentence(error: Exception) -> bool:
    """
    Whether a built-in reward refuses what it is given, or has not got what it needs: a `ValueError` that a module of this
    subpackage raises itself. One from below it, in NumPy or in a network, is a defect like any other.
    """
    if type(error) is not ValueError or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith(f"{__package__}.")


def _not_a_list(name: str, returned: str, expected: int, kind: RewardErrorKind) -> RewardError:
    return RewardError(
        f"reward function `{name}` returned {returned} for {counted(expected, 'image')}; return a list with one number "
        "(or None) per image.",
        kind,
        divisible=expected > 1,
    )
