# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Time and memory of one rollout and one update at the sizes of real models, with random weights: nothing is downloaded.

```
python benchmarks/real_sizes.py --models sd3.5-medium --sizes 512 1024 --output outputs/real-sizes.jsonl
python benchmarks/real_sizes.py --models sd3.5-medium --sizes 512 --compile --output outputs/real-sizes.jsonl
python benchmarks/real_sizes.py --parameters    # counts parameters, needs neither a GPU nor memory
python benchmarks/real_sizes.py --smoke         # the same code on tiny networks, on the CPU
```

The denoiser and the VAE have the shapes of the published configurations. Text encoders are left out: the prompts' embeddings
are random, of the right shape, which is what a run with `drop_text_encoders` has in memory. Images are noise, so rewards
mean nothing.

Every run trains for two rollouts with an update each. The first, in which kernels are chosen and compiled, is not counted; of
the second it tells for every phase the seconds, the peak of allocated memory and, where networks are computed, the FLOPs
that the work needs as a share of what the card reaches in a product of large matrices of the same precision, measured before.
Passes that gradient checkpointing makes again are not needed, so not counted. Waits of the host are those within a phase; its
end is always waited for, so that each has its own seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from real_networks import RUNS, make_pipeline, print_parameters
from speed_turns import forget_peak, memory
from transformers import TrainerCallback

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.families import Family
from trl_progrpo.flops import unit_flops
from trl_progrpo.stopwatch import now
from trl_progrpo.timing import PhaseTimer
from trl_progrpo.types import Conditioning


SMOKE_SIZE = 32


class RandomPrompts:
    """Stands in for the trainer's prompt cache: embeddings of the right shape, equal for equal prompts."""

    dropped = ()

    def __init__(self, family: Family, shapes: dict[str, tuple[int, ...]]):
        self.family, self.shapes = family, shapes

    def __call__(self, prompts: list[str], negative_prompt: str | None = None, device: Any = None) -> Conditioning:
        def side(seed: int) -> dict[str, torch.Tensor]:
            generator = torch.Generator().manual_seed(seed)
            drawn = {
                name: torch.randn(len(prompts), *shape, generator=generator) for name, shape in self.shapes.items()
            }
            return {name: tensor.to(self.family.device, self.family.dtype) for name, tensor in drawn.items()}

        return Conditioning(side(0), side(1) if self.family.do_classifier_free_guidance else None)


def brightness(prompts: list[str], images: torch.Tensor, **columns: Any) -> list[float]:
    """Mean of all pixels."""
    return images.float().mean((1, 2, 3)).tolist()


brightness.image_type = "pt"


class PhaseMeter(PhaseTimer):
    """Seconds of every phase with the device waited for; also the peak of its memory and how often the host waited meanwhile."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self.seconds = defaultdict(float)
        self.syncs, self.peak = defaultdict(int), defaultdict(int)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begun = self._now()
        forget_peak(self.device)
        with super().__call__(phase), count_syncs(self.device) as found:
            yield
        self.seconds[phase] += self._now() - begun
        self.syncs[phase] += len(found)
        self.peak[phase] = max(self.peak[phase], memory(self.device)[1])

    def _now(self) -> float:
        return now(self.device)


@contextmanager
def count_syncs(device: torch.device) -> Iterator[list[warnings.WarningMessage]]:
    """Collects a warning for every operation that has the host wait for a CUDA device."""
    if device.type != "cuda":
        yield []
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
            found[:] = [warning for warning in found if "synchroniz" in str(warning.message)]


class SecondStep(TrainerCallback):
    """Forgets what the first step took, and records a profile of the second."""

    def __init__(self, meter: PhaseMeter, trace: Path | None):
        self.meter, self.trace, self.profile = meter, trace, None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.meter.forget()
            if self.trace is not None:
                self.profile = torch.profiler.profile()
                self.profile.start()
        elif self.profile is not None:
            self.profile.stop()
            self.trace.parent.mkdir(parents=True, exist_ok=True)
            self.profile.export_chrome_trace(str(self.trace))


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second in products of square matrices, the best of ten."""
    side = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        begun = now(device)
        for _ in range(10):
            torch.mm(a, b)
        seconds.append((now(device) - begun) / 10)
    return 2 * side**3 / min(seconds)


def measure(name: str, size: int, rate: float, args: argparse.Namespace) -> dict[str, Any]:
    """The second of two rollouts and updates: phase -> seconds, share of `rate`, peak memory in GiB, waits of the host."""
    device = torch.device("cpu" if args.smoke else "cuda")
    run = RUNS[name]
    pipeline = make_pipeline(name, device.type, torch.float32 if args.smoke else torch.bfloat16, args.smoke)
    with tempfile.TemporaryDirectory() as folder:
        config = ProGRPOConfig(
            output_dir=folder,
            height=size,
            width=size,
            guidance_scale=run["guidance_scale"],
            num_generations=args.num_generations,
            num_expansions=args.num_expansions,
            prune_steps=[(args.num_inference_steps - 1) // 2],
            prune_sizes=[args.num_generations],
            num_inference_steps=args.num_inference_steps,
            per_device_train_batch_size=args.batch_size,
            gradient_accumulation_steps=args.num_generations // args.batch_size,
            decode_batch_size=1,
            # Not `False`, which transformers warns about.
            gradient_checkpointing=args.gradient_checkpointing or None,
            torch_compile=args.compile,
            torch_compile_backend=args.compile_backend if args.compile else None,
            max_steps=2,
            bf16=not args.smoke,
            use_cpu=args.smoke,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        dataset = Dataset.from_dict({"prompt": ["one", "two"]})
        trainer = ProGRPOTrainer(model=pipeline, reward_funcs=brightness, args=config, train_dataset=dataset)
        trainer.prompt_cache = RandomPrompts(trainer.family, run["conditioning"])
        meter = PhaseMeter(device)
        trainer.sampler.timer = trainer._timer = meter
        trace = None if args.trace is None else args.trace / f"{name}-{size}{'-compiled' * args.compile}.json"
        trainer.add_callback(SecondStep(meter, trace))
        trainer.train()
    rollout = trainer.last_rollout
    parameters = [(parameter.numel(), parameter.requires_grad) for parameter in trainer.family.denoiser.parameters()]
    trainer.family.denoiser.disable_gradient_checkpointing()
    # Counting needs shapes only; with weights, attention written as matrix products would not fit.
    for module in (trainer.family.denoiser, pipeline.vae):
        torch.nn.Module.to(module, "meta", torch.float32)
    with torch.compiler.set_stance("force_eager"):
        unit = unit_flops(trainer.family, trainer.prompt_cache(["one"]))
    passes = len(rollout) * len(rollout.step_indices) * trainer.family.nfe_per_row
    flops = {
        "denoise": rollout.cost.nfe * unit.network,
        "preview": rollout.cost.preview_decodes * unit.preview,
        "decode": rollout.cost.decodes * unit.decode,
        "update": passes * unit.training,
    }
    return {
        "model": name,
        "size": size,
        "compiled": args.compile,
        "gradient_checkpointing": args.gradient_checkpointing,
        "device": "CPU" if args.smoke else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "parameters": sum(number for number, _ in parameters),
        "trained": sum(number for number, trained in parameters if trained),
        "network_evaluations": rollout.cost.nfe,
        "matrix_teraflops_per_second": rate / 1e12,
        "phases": {
            phase: {
                "seconds": seconds,
                "share": flops[phase] / seconds / rate if phase in flops else None,
                "peak_gib": meter.peak[phase] / 2**30,
                "syncs": meter.syncs[phase],
            }
            for phase, seconds in meter.seconds.items()
        },
    }


def print_table(found: dict[str, Any]) -> None:
    compiled = ", compiled" if found["compiled"] else ""
    checkpointed = ", gradient checkpointing" if found["gradient_checkpointing"] else ""
    print(
        f"\n{found['model']} on {found['device']}, {found['size']} x {found['size']}{compiled}{checkpointed}: "
        f"{found['parameters'] / 1e9:.3f} B parameters, {found['trained'] / 1e6:.1f} M trained, "
        f"{found['network_evaluations']} network evaluations, products of matrices "
        f"{found['matrix_teraflops_per_second']:.1f} TFLOPs/s\n\n"
        "| Phase | Seconds | Share of the matrix rate | Peak memory, GiB | Waits of the host |\n|---|---|---|---|---|"
    )
    for phase, row in found["phases"].items():
        share = "" if row["share"] is None else f"{row['share']:.2f}"
        print(f"| {phase} | {row['seconds']:.3f} | {share} | {row['peak_gib']:.2f} | {row['syncs']} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--models", choices=list(RUNS), nargs="+", default=list(RUNS), help="which to measure")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="sides of the images in pixels")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--compile_backend", default="inductor")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--num_expansions", type=int, default=8)
    parser.add_argument("--num_generations", type=int, default=4)
    parser.add_argument("--num_inference_steps", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=2, help="trajectories per micro-batch of the update")
    parser.add_argument("--output", type=Path, help="JSONL file to which every result is added")
    parser.add_argument("--trace", type=Path, help="folder for a profile of each second step, as a Chrome trace")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny networks on the CPU: only shows that the script works"
    )
    parser.add_argument("--parameters", action="store_true", help="count parameters and measure nothing")
    args = parser.parse_args()
    if args.parameters:
        print_parameters()
        return
    if args.smoke:
        args.num_expansions, args.num_generations, args.num_inference_steps, args.batch_size = 3, 2, 2, 2
        args.sizes = [SMOKE_SIZE]
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device; give --smoke to try the script on tiny networks, or --parameters.")
    if args.smoke:
        rate = matrix_rate(torch.device("cpu"), torch.float32)
    else:
        rate = matrix_rate(torch.device("cuda"), torch.bfloat16)
    for name in args.models:
        for size in args.sizes:
            try:
                found = measure(name, size, rate, args)
            except torch.OutOfMemoryError as error:
                print(f"\n{name}, {size} x {size}: {str(error).splitlines()[0]}", flush=True)
                continue
            finally:
                gc.collect()
                torch.compiler.reset()
                torch.cuda.empty_cache()
            print_table(found)
            if args.output is not None:
                args.output.parent.mkdir(parents=True, exist_ok=True)
                with open(args.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
