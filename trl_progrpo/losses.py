# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The clipped policy-gradient loss of one denoising step, and what goes into it.

The pieces compose; a trainer adds them up for every trained step `i`:

```python
transition = policy.step(model_output, latents, schedule, i)
ratio = log_ratio(transition.log_prob(next_latents), old_log_prob)
loss, metrics = policy_loss(ratio, advantages, epsilon=1e-4)
loss = loss + beta * transition.kl(reference_transition)
```
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def log_ratio(log_prob: torch.Tensor, old_log_prob: torch.Tensor) -> torch.Tensor:
    """
    Log of the ratio of new to old policy: `log_prob - old_log_prob`, `(B,)`; the gradient flows through `log_prob` only.

    With log-probabilities reduced by the mean over `D` latent dimensions, as usual in this field, it is the log
    likelihood ratio over `D`.
    """
    return log_prob - old_log_prob.detach()


def guard_log_ratio(
    log_prob: torch.Tensor, old_log_prob: torch.Tensor, kl_to_old: torch.Tensor, std: float | torch.Tensor
) -> torch.Tensor:
    """
    The normalised log ratio of GRPO-Guard (arXiv 2510.22319): `(log_prob - old_log_prob + KL) * std`.

    Under the old policy the log ratio has mean `-KL(old || new)` and a spread that differs by orders of magnitude between
    steps, so that a clip range around 1 is off centre and too wide for some steps, too narrow for others. Adding the KL
    centres it; the product with `std` evens out the steps. What remains is linear in the change of the mean: the mean
    (or sum) over latent dimensions of `(x' - mean_old) (mean - mean_old) / std`.

    The paper also divides the policy loss, but not the KL penalty beside it, by `|dt|`: `policy.step_size(schedule, i)`, which
    is that for flows, and what takes its place for other models. That is the caller's.

    Deviation: the correction is made per sample. The authors' code reduces it to one number for the whole batch.

    Args:
        log_prob (`torch.Tensor` of shape `(B,)`): under the policy in training.
        old_log_prob (`torch.Tensor` of shape `(B,)`): under the policy that sampled.
        kl_to_old (`torch.Tensor` of shape `(B,)`): `transition.kl(old_transition)`, reduced like the log-probabilities and
            with its gradient.
        std (`float` or 0-dimensional `torch.Tensor`): the full standard deviation of the step, `transition.std`.

    Returns:
        `torch.Tensor` of shape `(B,)`, for [`policy_loss`].
    """
    return (log_ratio(log_prob, old_log_prob) + kl_to_old) * float(std)


def policy_loss(
    log_ratio: torch.Tensor,
    advantages: torch.Tensor,
    epsilon: float,
    epsilon_high: float | None = None,
    num_rows: int | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    PPO's clipped surrogate, `max(-A rho, -A clip(rho, 1 - epsilon, 1 + epsilon_high))` with `rho = exp(log_ratio)`.

    Args:
        log_ratio (`torch.Tensor` of shape `(B,)`): from [`log_ratio`] or [`guard_log_ratio`].
        advantages (`torch.Tensor` of shape `(B,)`): `A`, constants.
        epsilon (`float`): clip width below 1, and above unless `epsilon_high` is given. With mean-reduced log-probabilities
            published values are 1e-4 to 2e-6.
        epsilon_high (`float`, *optional*): clip width above 1.
        num_rows (`int`, *optional*): rows that the metrics are of, the first ones; all when unset. Of none they are NaN.

    Returns:
        `tuple`: the loss per row (`torch.Tensor` of shape `(B,)`, minimised) and metrics without gradient, all
        0-dimensional tensors: `ratio/mean`, `ratio/min`, `ratio/max`, `ratio/deviation` (mean of `|rho - 1|`, the number to
        hold against `epsilon`), and the fractions of rows whose gradient the clip removes, `clip_ratio/low_mean`
        (`A < 0`), `clip_ratio/high_mean` (`A > 0`) and `clip_ratio/region_mean` (either).

    Raises:
        ValueError: if a clip width is not a positive finite number, or the shapes differ.
    """
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    for name, value in (("epsilon", epsilon), ("epsilon_high", epsilon_high)):
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` is {value!r}; use a positive number, e.g. 1e-4.")
    if log_ratio.shape != advantages.shape:
        raise ValueError(
            f"`log_ratio` has shape {tuple(log_ratio.shape)} and `advantages` {tuple(advantages.shape)}; both are per row."
        )
    advantages = advantages.detach()
    # rho - 1, because next to 1 float32 has steps of 1e-7: a clip width of 2e-6 would be off by several per cent.
    deviation = log_ratio.expm1()
    clipped = deviation.clamp(-epsilon, epsilon_high)
    loss = torch.maximum(-advantages * deviation, -advantages * clipped) - advantages

    deviation, advantages = deviation.detach()[:num_rows], advantages[:num_rows]
    low = (deviation < -epsilon) & (advantages < 0)
    high = (deviation > epsilon_high) & (advantages > 0)
    least, most = deviation.aminmax() if len(deviation) else (deviation.mean(), deviation.mean())
    metrics = {
        "ratio/mean": 1 + deviation.mean(),
        "ratio/min": 1 + least,
        "ratio/max": 1 + most,
        "ratio/deviation": deviation.abs().mean(),
        "clip_ratio/low_mean": low.float().mean(),
        "clip_ratio/high_mean": high.float().mean(),
        "clip_ratio/region_mean": (low | high).float().mean(),
    }
    return loss, metrics


def clip_advantages(advantages: torch.Tensor, adv_clip_max: float | None) -> torch.Tensor:
    """
    `advantages`, any shape, clipped to `[-adv_clip_max, adv_clip_max]`; `None` leaves them alone. Flow-GRPO and DDPO use 5.

    Raises:
        ValueError: if `adv_clip_max` is not positive.
    """
    if adv_clip_max is None:
        return advantages
    if not adv_clip_max > 0:
        raise ValueError(f"`adv_clip_max` is {adv_clip_max!r}; use a positive number or None.")
    return advantages.clamp(-adv_clip_max, adv_clip_max)


def step_weights(stds: Sequence[float] | torch.Tensor, power: float = 0.0) -> torch.Tensor:
    """
    Loss weights of the trained steps: proportional to `std^power`, with mean 1.

    The gradient of a Gaussian log-probability grows as `1 / std`, so equally weighted steps are dominated by the least
    noisy ones; `power=1` takes that factor out, `power=0` leaves the plain mean over steps.

    Args:
        stds (sequence of `float` or `torch.Tensor` of shape `(S,)`): full standard deviations of the trained steps.
        power (`float`, *optional*, defaults to 0): the exponent.

    Returns:
        `torch.Tensor` of shape `(S,)`, float32, on the CPU.

    Raises:
        ValueError: if a deviation is not positive and finite, or `power` is not finite.
    """
    stds = torch.as_tensor(stds, dtype=torch.float64).detach().cpu()
    if stds.ndim != 1 or len(stds) == 0 or not ((stds > 0) & stds.isfinite()).all():
        raise ValueError(f"`stds` is {stds.tolist()}; give the positive standard deviation of every trained step.")
    if not math.isfinite(power):
        raise ValueError(f"`power` is {power!r}; use a finite number, 0 for equal weights.")
    weights = (stds / stds.max()) ** power
    return (weights / weights.mean()).to(torch.float32)
