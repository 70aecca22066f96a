# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""A run that may be one process of several, and that writes down which trajectories it trained and what became of them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file


if TYPE_CHECKING:
    from forks import Forks


PROMPTS = [
    "a red circle",
    "two blue squares",
    "a green triangle",
    "a yellow square",
    "three white circles",
    "a purple circle",
    "two red squares",
]


def redness(prompts, images, **columns):
    return (images[:, 0] - images[:, 2]).mean((1, 2)).tolist()


redness.image_type = "pt"


def train(model: str, output_dir: str, prompts: int = len(PROMPTS), **config: Any) -> int:
    """Trains, and writes `{rank}.json` and, on the first process, `weights.safetensors`."""
    from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
    from trl_progrpo.sharding import whole_state

    folder, trained, rollouts = Path(output_dir), [], []

    class Recorded(ProGRPOTrainer):
        def _rollout(self, inputs, rollout_index):
            super()._rollout(inputs, rollout_index)
            rollout, rows = self.last_rollout, len(self.geometry.rows(self.accelerator.process_index))
            columns = (rollout.prompt_index + rollout.first_slot, rollout.member, rollout.rewards, rollout.advantages)
            records = [
                (r.step_index, r.prompt_index + rollout.first_slot, r.member, r.kept) for r in rollout.prune_records
            ]
            rollouts.append(
                {
                    "rows": list(zip(*(column[:rows].tolist() for column in columns))),
                    "kept": [
                        [step, p, m] for step, *columns in records for p, m, k in zip(*(c.tolist() for c in columns)) if k
                    ],
                    "left_out": rollout.advantages[rows:].isnan().all().item(),
                    "bytes_sent": self.sampler.spread.bytes_sent if self.sampler.spread else 0,
                }
            )  # fmt: skip

        def _prepare_inputs(self, inputs):
            batch = super()._prepare_inputs(inputs)
            rows = batch.rows.select(torch.arange(batch.num_rows))
            slots = (rows.prompt_index + rows.first_slot).tolist()
            trained.append([self.state.global_step, len(batch.rows), list(zip(slots, rows.member.tolist()))])
            return batch

    args = ProGRPOConfig(
        output_dir=output_dir, use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
        num_validation_prompts=0, **config,
    )  # fmt: skip
    rows = [{"prompt": prompt, "number": i} for i, prompt in enumerate(PROMPTS[:prompts])]
    trainer = Recorded(model=model, reward_funcs=redness, args=args, train_dataset=rows)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    told = {"rollouts": rollouts, "trained": trained, "logs": logs, "arithmetic": trainer.arithmetic()}
    (folder / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(told))
    # A collective call where they are sharded.
    weights = whole_state(trainer.family.denoiser, trained_only=True)
    if trainer.is_world_process_zero():
        save_file(weights, folder / "weights.safetensors")
    # A fork ends without what Python does at its end.
    trainer.rank_watch.leave()
    return 0


def run(
    forks: Forks, folder: Path, processes: int, environment: Mapping[str, str] = {}, **config: Any
) -> list[dict[str, Any]]:
    """What every process of a run wrote, in their order; a launcher would set `environment`."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    everyone = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        **environment,
    }
    children = [
        forks.start(
            "train_ranked",
            folder / f"said_{rank}",
            environment={**everyone, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {},
            output_dir=str(folder),
            **config,
        )
        for rank in range(processes)
    ]
    for child in children:
        assert child.wait() == 0, child.said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
