# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""From a run to the values that the page shows. Everything is plain text here; the template escapes it."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from ..arithmetic import without_effect
from ..heldout import evaluation_table
from ..model_card.facts import compute_table, describe_schedule, network_evaluations
from ..monitoring.group_plots import draw_reward_histogram, histogram_edges
from ..plots import (
    draw_prune_funnel,
    draw_reward_curve,
    draw_trajectories_alive,
    held_out_series,
    prune_group_sizes,
    prune_table,
)
from ..policies import POLICIES, noise_option
from ..timing import phase_seconds
from ..words import change_in_words, counted, gained, in_figures, number, with_error
from .charts import chart
from .run_folder import RunFolder
from .sheets import SMALL, data_uri, read_sheet
from .words import duration, seconds, setting


KEY_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "per_device_train_batch_size", "steps_per_generation",
    "gradient_accumulation_steps", "num_generations", "num_expansions", "prune_steps", "prune_sizes", "prune_schedule",
    "pruning_rule", "preview_decoder", "num_inference_steps", "eval_num_inference_steps", "guidance_scale", "policy",
    "noise_level", "eta", "sde_window", "sde_window_size", "train_timestep_fraction", "num_iterations", "beta", "epsilon",
    "epsilon_high", "loss_type", "step_weighting", "scale_rewards", "reward_weights", "ema_decay", "max_grad_norm", "seed",
    "bf16", "fp16",
)  # fmt: skip
"""Settings that are shown at once, those of them that are set; all others can be unfolded."""


def context(run: RunFolder) -> dict[str, Any]:
    """Everything the template asks for, by name; `None` or empty where the run has nothing to show."""
    args, history, recorded = run.config, run.log_history, run.recorded
    evaluation = _evaluation(run)
    unused = _unused(run)
    counts = {row["num_prompts"] for row in evaluation}
    sizes = prune_group_sizes(args, run.choices) if args else {}
    table = prune_table(history, sizes, args.num_inference_steps if args else None)
    return {
        "title": run.path.name,
        "lead": _lead(run),
        "schedule": describe_schedule(args, run.choices).replace("`", "").replace("->", "→") if args else None,
        "tiles": list(_tiles(run, evaluation)),
        "evaluation": evaluation,
        "held_out": counted(*counts, "held-out prompt") if len(counts) == 1 else "held-out prompts",
        "kept_step": run.kept_step,
        "fell": [row for row in evaluation if row["fell"]],
        "rewards": _rewards(history),
        "images": _images(run),
        "prune": _prune(run, table) if table or sizes else None,
        "group": _group(run),
        "compute": _compute(run),
        "facts": list(_facts(run)),
        "settings": [
            (name, setting(run.args[name]))
            for name in KEY_SETTINGS
            if run.args.get(name) is not None and run.args[name] is not False and name not in unused
        ],
        "all_settings": [
            (name, setting(value))
            for name, value in sorted(run.args.items())
            if not name.endswith("_token") and name not in unused
        ],
        "config": recorded.get("config"),
        "config_name": recorded.get("config_name"),
        "command": recorded.get("command"),
        "versions": recorded.get("versions") or {},
        "device": recorded.get("device"),
    }  # fmt: skip


def _lead(run: RunFolder) -> str:
    recorded = run.recorded
    what = "" if not recorded else "A LoRA adapter for " if recorded.get("adapter") else "A full fine-tune of "
    model = f"{what}{recorded.get('model') or 'a pipeline'}, trained on " if recorded else ""
    rewards = ", ".join(recorded.get("reward_funcs") or [])
    of = f"{in_figures(run.global_step)} of " if run.global_step < run.max_steps else ""
    steps = of + counted(max(run.global_step, run.max_steps) if of else run.global_step, "optimiser step")
    return f"{model}{rewards + ' for ' if rewards else ''}{steps} with Pro-GRPO"


def _unused(run: RunFolder) -> set[str]:
    """The settings that do nothing in this run, such as the noise of another kind of policy."""
    unused = set(without_effect(run.config)) if run.config else set()
    noise = run.recorded.get("noise_option")
    if noise is None and run.args.get("policy") in POLICIES.registered():
        noise = noise_option(POLICIES.get(run.args["policy"]))
    return unused | {"noise_level": {"eta"}, "eta": {"noise_level"}}.get(noise, set())


def _facts(run: RunFolder) -> Iterator[tuple[str, str]]:
    """What was made of what, and when: name and value."""
    recorded = run.recorded
    prompts, held_out = recorded.get("num_prompts"), recorded.get("num_held_out")
    data = recorded.get("data")
    written = datetime.fromisoformat(recorded["date"]) if recorded.get("date") else run.written
    named = {
        "base model": recorded.get("model"),
        "trained weights": recorded.get("weights"),
        "training prompts": " of ".join(filter(None, (f"{prompts:,}" if prompts else None, data))),
        "held-out prompts": f"{held_out:,}" if held_out else None,
        "rewards": ", ".join(recorded.get("reward_funcs") or []),
        "watched rewards": ", ".join(recorded.get("eval_reward_funcs") or []),
        "policy": recorded.get("policy"),
        "date": f"{written:%Y-%m-%d %H:%M} UTC",
    }
    return ((name, value) for name, value in named.items() if value)


def _evaluation(run: RunFolder) -> list[dict[str, Any]]:
    """[`evaluation_table`] with what is written."""
    rows = evaluation_table(run.log_history, run.recorded.get("reward_funcs"), run.kept_step)
    for row in rows:
        texts = {
            "before": with_error(row["before"], row["before_stderr"]),
            "after": with_error(row["after"], row["after_stderr"]),
            "gain": with_error(row["gain"], row["gain_stderr"], "+"),
        }
        row["text"] = {name: text.replace("± ", "±\N{NO-BREAK SPACE}") for name, text in texts.items()}
        row["direction"] = "" if not row["sure"] else "down" if row["fell"] else "up"
    return rows


def _tiles(run: RunFolder, evaluation: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """The numbers one looks for first: label, value, note."""
    for row in evaluation[:2]:
        name = f"Held-out {row['name']}"
        if row["before"] is None:
            yield {
                "label": name,
                "value": number(row["after"]),
                "note": f"± {number(row['after_stderr'])}",
                "sign": "",
            }
            continue
        value = f"{number(row['before'])} → {number(row['after'])}"
        yield {"label": name, "value": value, "note": row["text"]["gain"], "sign": row["direction"]}
    work = _evaluations(run)
    if work is not None and work["unpruned"] > work["plain"]:
        times, saved = (
            (work[name] / work["plain"] for name in ("measured", "unpruned")),
            1 - work["measured"] / work["unpruned"],
        )
        measured, unpruned = (f"{value:.1f} ×" for value in times)
        # What pruning saved is saved of what expanding spends, so the two are told together.
        note = f"{unpruned} without pruning, which saved {saved:.0%}" if saved > 0 else "nothing was pruned on the way"
        yield {"label": "Network evaluations", "value": f"{measured} plain GRPO", "note": note, "sign": ""}
    runtimes = [entry["train_runtime"] for entry in run.log_history if "train_runtime" in entry]
    if runtimes:
        total = sum(phase_seconds(run.log_history).values()) or sum(runtimes)
        steps = counted(run.global_step, "optimiser step")
        yield {"label": "Training time", "value": duration(total), "note": steps, "sign": ""}


def _rewards(history: Sequence[Mapping[str, Any]]) -> str | None:
    if draw_reward_curve(history) is None:
        return None
    main, extra = held_out_series(history)
    told = (
        f" {name.capitalize()}: {number(ys[0])} at step {xs[0]}, {number(ys[-1])} at step {xs[-1]}."
        for name, (xs, ys, _) in {**main, **extra}.items()
    )
    return chart(lambda width: draw_reward_curve(history, width), f"Reward against optimiser steps.{''.join(told)}")


def _alive(started: int, sizes: Mapping[int, tuple[int, int]], num_steps: int) -> str:
    told = "".join(f", {after} after step {step}" for step, (_, after) in sizes.items() if step < num_steps)
    label = f"Trajectories per prompt: {started} at step 0{told}."
    return chart(lambda width: draw_trajectories_alive(started, sizes, num_steps, width), label)


def _spread(table: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    told = (
        f" {name}: "
        + ", ".join(f"{key} {number(row[f'reward_std_{key}'])}" for key in ("before", "random", "after"))
        + "."
        for name, row in zip(names, table)
    )
    label = f"Standard deviation of rewards within groups.{''.join(told)}"
    return chart(lambda width: draw_prune_funnel(table, width), label)


def _histogram(before: Sequence[float], after: Sequence[float] | None, edges: Sequence[float]) -> str:
    kept = f", {len(after)} after pruning" if after is not None else ""
    label = f"Histogram of the rewards of a group: {len(before)} before{kept}."
    return chart(lambda width: draw_reward_histogram([(None, before, after)], edges, width), label)


def _images(run: RunFolder) -> dict[str, Any] | None:
    """Images before and after by prompt; the grid of `before_after.png` where only that is there."""
    rows = run.recorded.get("images") or []
    prompts = run.recorded.get("prompts") or []
    cases = run.recorded.get("cases") or [None] * len(prompts)
    scores = [_floats(row.get("scores") or []) for row in rows]
    fixed = [row[: run.recorded.get("num_fixed")] for row in scores]
    try:
        sheets = [read_sheet(row["sheet"], run.pictures_folder) for row in rows]
    except (OSError, KeyError, ValueError, TypeError):
        sheets = []
    if sheets and prompts and all(len(sheet) == len(prompts) for sheet in sheets):
        columns = [
            {
                "prompt": prompt,
                "case": cases[i],
                "images": [
                    {
                        "uri": data_uri(sheet[i]),
                        "label": row["label"],
                        "score": _score(row["scores"], i),
                        "gain": gained(scores[0][i], scores[r][i]) if r and i < min(map(len, scores)) else "",
                        "small": max(sheet[i].size) <= SMALL,
                    }
                    for r, (row, sheet) in enumerate(zip(rows, sheets))
                ],
            }
            for i, prompt in enumerate(prompts)
        ]
        return {
            "columns": columns,
            "grid": None,
            "change": change_in_words(*fixed) if len(fixed) == 2 else "",
            "num_fixed": len(fixed[0]) if fixed else 0,
        }
    grid = run.path / "before_after.png"
    if not grid.is_file():
        return None
    return {"columns": [], "grid": f"data:image/png;base64,{base64.b64encode(grid.read_bytes()).decode()}"}


def _prune(run: RunFolder, table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    args = run.config
    # Of several schedules the one in force.
    last = run.choices[-1:]
    started = last[0]["num_expansions"] if last else args and args.num_expansions
    sizes = prune_group_sizes(args, last) if args else {}
    names = ["finished" if row["post_hoc"] else f"step\N{NO-BREAK SPACE}{row['step']}" for row in table]
    rank_corrs = [_mean_of(run.log_history, f"audit/step_{row['step']}/rank_corr") for row in table]
    return {
        "alive": _alive(started, sizes, args.num_inference_steps) if sizes else None,
        "spread": _spread(table, names) if table else None,
        "rows": [
            {
                "name": name,
                "sizes": f"{row['sizes'][0]}\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}{row['sizes'][1]}"
                if row["sizes"]
                else "–",
                **{key: number(row[f"reward_std_{key}"]) for key in ("before", "random", "after")},
                "rank_corr": number(row["rank_corr"], digits=2),
                "audited": number(audited, digits=2),
            }
            for name, row, audited in zip(names, table, rank_corrs)
        ],
        "audited": not all(map(math.isnan, rank_corrs)),
    }


def _group(run: RunFolder) -> dict[str, Any] | None:
    """The last group that was recorded: previews by checkpoint, histograms, survivors."""
    group = run.recorded.get("group")
    if not group:
        return None
    parts = [*group["checkpoints"], group["survivors"]]
    edges = histogram_edges([reward for part in parts for reward in _floats(part["rewards"])])
    try:
        checkpoints = [_checkpoint(run, group, checkpoint, edges) for checkpoint in group["checkpoints"]]
        survivors = _sorted_tiles(run, group["survivors"], None)
    except (OSError, KeyError, ValueError, TypeError):
        return None
    alone = not checkpoints and _histogram(_floats(group["survivors"]["rewards"]), None, edges)
    return {
        "prompt": group["prompt"],
        "step": counted(group["global_step"], "optimiser step"),
        "checkpoints": checkpoints,
        "survivors": survivors,
        "histogram": alone or None,
    }  # fmt: skip


def _checkpoint(run: RunFolder, group: Mapping[str, Any], checkpoint: Mapping[str, Any], edges) -> dict[str, Any]:
    post_hoc = checkpoint["step_index"] == group["num_inference_steps"]
    name = "Finished images" if post_hoc else f"Previews after step {checkpoint['step_index']}"
    before = _floats(checkpoint["rewards"])
    after = [reward for reward, kept in zip(before, checkpoint["kept"]) if kept]
    return {
        "name": name,
        "kept": _sorted_tiles(run, checkpoint, True),
        "pruned": _sorted_tiles(run, checkpoint, False),
        "histogram": _histogram(before, after, edges),
        "std": (number(_std(before)), number(_std(after))),
    }


def _sorted_tiles(run: RunFolder, part: Mapping[str, Any], kept: bool | None) -> list[dict[str, Any]]:
    images = read_sheet(part["sheet"], run.pictures_folder)
    rewards = _floats(part["rewards"])
    chosen = [i for i in range(len(images)) if kept is None or bool(part["kept"][i]) == kept]
    chosen.sort(key=lambda i: -math.inf if math.isnan(rewards[i]) else rewards[i], reverse=True)
    return [
        {"uri": data_uri(images[i]), "score": number(rewards[i], digits=2), "small": max(images[i].size) <= SMALL}
        for i in chosen
    ]


def _compute(run: RunFolder) -> dict[str, Any] | None:
    rows = [
        {
            **row,
            "seconds": seconds(row["seconds"]),
            "width": f"{100 * row['share']:.2f}",
            "share": f"{row['share']:.0%}",
        }
        for row in compute_table(run.log_history)
    ]
    names = ("nfe", "decodes", "preview_decodes", "reward_calls")
    words = ("network evaluations", "images decoded", "previews decoded", "images scored")
    means = [_mean_of(run.log_history, f"sampling/{name}") for name in names]
    counts = [(word, f"{mean:,.0f}") for word, mean in zip(words, means) if not math.isnan(mean)]
    if not rows and not counts:
        return None
    work = _evaluations(run)
    compared = [
        ("plain GRPO", work["plain"]), ("as it ran", work["measured"]), ("had all been finished", work["unpruned"]),
    ] if work else []  # fmt: skip
    highest = max((value for _, value in compared), default=1)
    return {
        "rows": rows,
        "counts": counts,
        "compared": [
            (name, f"{value:,.0f} ({value / work['plain']:.1f} ×)", f"{100 * value / highest:.1f}")
            for name, value in compared
        ],
    }


def _evaluations(run: RunFolder) -> dict[str, float] | None:
    nfe_per_row = run.recorded.get("nfe_per_row") or (1 if run.args.get("guidance_scale") == 1 else None)
    args, groups = run.config, run.groups_per_process
    return network_evaluations(run.log_history, args, nfe_per_row, groups) if args and nfe_per_row and groups else None


def _score(scores: Sequence[float | None], index: int) -> str:
    return number(scores[index], digits=2) if index < len(scores) else "–"


def _floats(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _mean_of(history: Sequence[Mapping[str, Any]], key: str) -> float:
    values = [entry[key] for entry in history if _is_number(entry.get(key))]
    return math.fsum(values) / len(values) if values else math.nan


def _std(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    mean = math.fsum(known) / len(known)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in known) / len(known))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
