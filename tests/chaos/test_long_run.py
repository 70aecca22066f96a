# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""A run of 300 updates needs no more memory at its end than after 200."""

import gc

import psutil
import pytest
from datasets import Dataset
from transformers import TrainerCallback


class Memory(TrainerCallback):
    """Resident bytes of this process after every update, garbage collected."""

    def __init__(self):
        self.bytes = []

    def on_step_end(self, args, state, control, **kwargs):
        gc.collect()
        self.bytes.append(psutil.Process().memory_info().rss)


@pytest.mark.slow
def test_the_last_100_of_300_updates_need_no_more_memory(make_trainer):
    memory = Memory()
    trainer = make_trainer(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_generations=2,
        num_expansions=3,
        prune_sizes=[2],
        num_inference_steps=3,
        max_steps=300,
        logging_steps=5,
        ema_decay=0.9,
        save_strategy="steps",
        save_steps=25,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=50,
        num_validation_prompts=0,
        eval_dataset=Dataset.from_dict({"prompt": ["a red circle", "a blue square"]}),
        callbacks=[memory],
    )
    trainer.train()
    assert len(memory.bytes) == 300
    growth = memory.bytes[-1] / memory.bytes[-101] - 1
    print(f"{memory.bytes[-101] / 2**20:.1f} MiB after 200 updates, {memory.bytes[-1] / 2**20:.1f} after 300")
    print(" ".join(f"{resident / 2**20:.1f}" for resident in memory.bytes[::20]))
    assert growth < 0.01, memory.bytes[::20]
