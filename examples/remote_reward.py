# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
A reward that another process computes: `python examples/remote_reward.py`.

The server is started here to have one; usually it runs elsewhere, `trl-progrpo reward-server --reward shapes`.
"""

import subprocess
import sys

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.tiny import load_shapes


def train(url):
    args = ProGRPOConfig(
        output_dir="outputs/remote-reward",
        num_expansions=24,
        prune_steps=[6],
        prune_sizes=[12],
        preview_decoder="shapes",
        rollout_waves=2,  # one half of the prompts is scored while the other is denoised
        per_device_train_batch_size=48,
        learning_rate=7e-4,
        step_weighting=2,
        max_steps=10,
        logging_steps=1,
        report_to="none",
    )
    trainer = ProGRPOTrainer(
        model="shapes", reward_funcs=f"remote:{url}/shapes", args=args, train_dataset=load_shapes("train")
    )
    trainer.train()
    trainer.save_model()


def main():
    command = [sys.executable, "-m", "trl_progrpo.cli", "reward-server", "--reward", "shapes", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()  # "serving shapes at http://127.0.0.1:PORT"
        train(line.split()[-1])
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
