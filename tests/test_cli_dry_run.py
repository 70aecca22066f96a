# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`--dry_run`: what it says is what a run does, and it needs no weights to say it."""

import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from trl_progrpo.arithmetic import count_work
from trl_progrpo.cli.arguments import TrainParser
from trl_progrpo.cli.main import main
from trl_progrpo.cli.resolved_config import resolved_config, to_yaml
from trl_progrpo.families import family_class
from trl_progrpo.families.skeleton import skeleton


DEMO = Path(__file__).parents[1] / "examples" / "configs" / "shapes_demo.yaml"
SHAPES = ["--model_name_or_path", "shapes", "--dataset_name", "shapes", "--reward_funcs", "shapes"]
BATCH = ["--num_generations", "4", "--per_device_train_batch_size", "4", "--use_cpu", "--report_to", "none"]


@pytest.fixture(scope="module")
def without_weights(pipeline_path, tmp_path_factory):
    """The tiny pipeline's folder with its configuration files only."""
    folder = tmp_path_factory.mktemp("configs") / "tiny"
    shutil.copytree(pipeline_path, folder, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    assert not list(folder.rglob("*.safetensors"))
    return str(folder)


@pytest.mark.parametrize("model", ["shapes", "pipeline_path"])
def test_a_skeleton_answers_as_the_pipeline_does(model, request, without_weights):
    from trl_progrpo.families import load_pipeline

    real = request.getfixturevalue(model) if model != "shapes" else model
    family = family_class(real)
    bare, full = family(skeleton(without_weights if model != "shapes" else model)), family(load_pipeline(real))
    assert (bare.height, bare.width, bare.latent_shape) == (full.height, full.width, full.latent_shape)
    assert torch.equal(bare.make_schedule(7).sigmas, full.make_schedule(7).sigmas)
    shapes = {name: p.shape for name, p in full.denoiser.named_parameters()}
    assert {name: p.shape for name, p in bare.denoiser.named_parameters()} == shapes
    assert all(p.is_meta for p in bare.denoiser.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prune_steps": None, "prune_sizes": None},
        {"num_expansions": 4, "prune_steps": None, "prune_sizes": None},
        {"num_expansions": 9, "prune_steps": [0, 2], "prune_sizes": [7, 5]},
        {"guidance_scale": 3.0},
        # Of three rollouts of two prompts the second and the third audit one.
        {"audit_fraction": 0.4, "max_steps": 3},
    ],
)
def test_the_arithmetic_is_what_the_sampler_counts(make_trainer, make_config, redness, changes):
    args = make_config(**{"max_steps": 1, "audit_fraction": 0.0, **changes})
    trainer = make_trainer(args, reward_funcs=[redness, redness])
    trainer.train()
    work = count_work(args, 2, 2, trainer.family.nfe_per_row, rollouts=args.max_steps)
    for name in asdict(trainer.last_rollout.cost):
        logged = [entry[f"sampling/{name}"] for entry in trainer.state.log_history if f"sampling/{name}" in entry]
        assert sum(logged) == getattr(work, name)
    mean = count_work(args, 2, 2, trainer.family.nfe_per_row)
    if args.audit_fraction == 0:
        assert mean == work
    else:
        assert len(set(logged)) == 2
        assert mean.nfe == pytest.approx(count_work(args, 2, 2, rollouts=1000).nfe / 1000)


def printed(capsys, *argv):
    """Comments by label, and the YAML below them."""
    assert main(["train", *argv, "--dry_run"]) == 0
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return dict(re.findall(r"^#   (.{22})(.*)$", out, re.MULTILINE)), yaml.safe_load(out), out


class TestOutput:
    def test_of_the_demo(self, capsys, tmp_path):
        said, config, _ = printed(capsys, "--config", str(DEMO), "--output_dir", str(tmp_path / "out"))
        said = {label.strip(): text for label, text in said.items()}
        assert said["model family"] == "StableDiffusion3Family"
        assert said["trained"].endswith("a LoRA of rank 16")
        assert said["trained on"] == "shapes (weight 1)"
        assert said["measured only"] == "shapes_strict"
        assert said["previews pruned by"] == "shapes"
        assert not {"audits", "waves"} & set(said)
        assert said["prompts"] == "16"
        assert said["per prompt"].startswith("48 -> 24 -> 12 (after step 5, after step 7)")
        assert said["images decoded"] == "192, and 1,152 previews"
        assert said["optimiser steps"] == "80"
        assert said["rollouts"].startswith("20, ")
        assert config["prune_sizes"] == [24, 12]
        assert not list((tmp_path / "out").iterdir()), "nothing is trained or written"

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [((), "5,760 rows (3.0 times plain GRPO, 75% of no pruning)"),
         (("--prune_steps", "none", "--prune_sizes", "none"), "7,680 rows (4.0 times plain GRPO, 100% of no pruning)")],
    )  # fmt: skip
    def test_what_pruning_saves_is_told_beside_what_expanding_costs(self, capsys, tmp_path, flags, expected):
        assert main(["train", "--config", str(DEMO), "--output_dir", str(tmp_path / "out"), *flags, "--dry_run"]) == 0
        assert expected in capsys.readouterr().out

    def test_what_is_switched_off_stays_so(self, capsys, tmp_path):
        off = ["--dataset_test_split", "none", "--adv_clip_max", "none", "--eval_strategy", "no"]
        said, config, out = printed(capsys, *SHAPES, *BATCH, "--output_dir", str(tmp_path / "out"), *off)
        (tmp_path / "again.yaml").write_text(out)
        again, config_again, _ = printed(capsys, "--config", str(tmp_path / "again.yaml"))
        assert said == again
        assert (config["dataset_test_split"], config["adv_clip_max"]) == ("none", "none")
        assert config_again == config

    def test_a_best_metric_of_no_reward_is_found_too(self, capsys, tmp_path):
        best = ["--load_best_model_at_end", "--eval_strategy", "steps", "--metric_for_best_model", "rewards/nope/mean"]
        argv = ["train", *SHAPES, *BATCH, *best, "--eval_reward_funcs", "shapes_strict", "--output_dir", str(tmp_path)]
        assert main([*argv, "--dry_run"]) == 2
        assert "no reward is called 'nope'; there are shapes, shapes_strict." in capsys.readouterr().err

    def test_of_the_demo_with_audits_waves_and_another_reward_for_previews(self, capsys, tmp_path):
        flags = ["--audit_fraction", "0.05", "--rollout_waves", "2", "--preview_reward_funcs", "shapes_strict"]
        said, config, _ = printed(capsys, "--config", str(DEMO), "--output_dir", str(tmp_path / "out"), *flags)
        said = {label.strip(): text for label, text in said.items()}
        assert said["previews pruned by"] == "shapes_strict"
        assert said["waves"].startswith("2: ")
        assert said["audits"].startswith("0.8 of these prompts on average are finished unpruned too")
        # Of 16 prompts 15.2 take 6 * 48 + 2 * 24 + 2 * 12 evaluations and 0.8 take 10 * 48.
        assert said["images decoded"] == "about 221, and about 1,171 previews"
        assert said["network evaluations"] == "117,120 rows in rollouts"
        names = ("audit_fraction", "rollout_waves", "preview_reward_funcs")
        assert [config[name] for name in names] == [0.05, 2, ["shapes_strict"]]

    def test_without_checkpoints_nothing_is_audited(self, capsys, tmp_path):
        """Selection among finished images has no previews to judge."""
        flags = [*SHAPES, *BATCH, "--num_expansions", "8", "--output_dir", str(tmp_path / "out"), "--max_steps", "1"]
        said, _, _ = printed(capsys, *flags)
        said = {label.strip(): text for label, text in said.items()}
        assert "audits" not in said
        assert said["previews pruned by"].startswith("nothing")
        assert said["per prompt"].startswith("8 -> 4 (on the final rewards)")

    def test_needs_no_weights(self, without_weights, tmp_path, capsys):
        (tmp_path / "prompts.txt").write_text("\n".join(f"prompt {i}" for i in range(8)))
        argv = ["--model_name_or_path", without_weights, "--dataset_name", str(tmp_path / "prompts.txt")]
        argv += [
            "--reward_funcs",
            "jpeg_compressibility",
            *BATCH,
            "--max_steps",
            "3",
            "--output_dir",
            str(tmp_path / "out"),
        ]
        said, _, _ = printed(capsys, *argv, "--num_processes", "2")
        said = {label.strip(): text for label, text in said.items()}
        assert said["training prompts"] == "8"
        assert said["held-out prompts"] == "none"
        # Three rollouts of one prompt on each of two processes.
        assert said["rollouts"] == "3, 0.75 passes over the prompts"

    def test_what_is_one_is_not_many(self, tmp_path, capsys):
        argv = [*SHAPES, *BATCH, "--gradient_accumulation_steps", "1", "--max_steps", "1", "--prune_schedule", "auto"]
        argv += ["--num_expansions", "8", "--prune_schedule_groups", "2", "--num_processes", "2"]
        said, _, _ = printed(capsys, *argv, "--output_dir", str(tmp_path / "out"))
        assert said["update".ljust(22)].endswith("rows, 1 optimiser step")
        assert said["each choice".ljust(22)].startswith("1 group of 8: ")

    def test_a_stream(self, tmp_path, capsys):
        argv = [*SHAPES, *BATCH, "--dataset_streaming", "--max_steps", "3", "--output_dir", str(tmp_path / "out")]
        said, _, _ = printed(capsys, *argv)
        assert said["training prompts".ljust(22)] == "a stream"

    def test_of_texts_to_be_read(self, tmp_path, capsys):
        pytest.importorskip("rapidocr")
        rows = ['a 5" screen that says "OPEN"', "„Hallo“ und «Welt»", *(f"'{n}'" for n in range(8))]
        (tmp_path / "prompts.txt").write_text("\n".join(rows), encoding="utf-8")
        argv = ["train", *SHAPES, *BATCH, "--dry_run", "--output_dir", str(tmp_path), "--reward_funcs", "ocr"]
        assert main([*argv, "--dataset_name", str(tmp_path / "prompts.txt")]) == 0
        assert (
            "texts to be read      'OPEN', 'Hallo Welt', '0', '1', '2', '3', '4', '5' and 2 more"
            in capsys.readouterr().out
        )

    def test_is_a_configuration_that_gives_the_same_again(self, capsys, tmp_path):
        flags = [*SHAPES, *BATCH, "--output_dir", str(tmp_path), "--max_steps", "5", "--lora_target_modules", "to_q"]
        flags += ["--model_init_kwargs", '{"variant": "fp16"}', "--adam_beta2", "0.9", "--save_strategy", "no"]
        flags += ["--negative_prompt", "ugly: no", "--hub_token", "hf_abcdefgh", "--lr_scheduler_type", "cosine"]
        first = TrainParser().parse(flags, {}, "")
        text = to_yaml(resolved_config(*first))
        assert "hf_abcdefgh" not in text
        assert "adam_beta2: 0.9\n" in text
        assert "adam_beta1" not in text
        again = TrainParser().parse([], yaml.safe_load(text), "run.yaml")
        assert resolved_config(*again) == yaml.safe_load(text)
        assert again[:2] == first[:2]
        different = {key for key, value in first[2].to_dict().items() if again[2].to_dict()[key] != value}
        assert different <= {"hub_token", "logging_dir", "run_name"}

    def test_of_a_mixture(self, tmp_path):
        entry = {"path": "shapes", "split": "train[:9]"}
        flags = ["--model_name_or_path", "shapes", "--reward_funcs", "shapes", *BATCH, "--output_dir", str(tmp_path)]
        first = TrainParser().parse(flags, {"datasets": [entry]}, "run.yaml")
        again = TrainParser().parse([], yaml.safe_load(to_yaml(resolved_config(*first))), "run.yaml")
        assert again[0] == first[0]


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--prompt_column", "caption"], ["no column 'caption'", "its columns are prompt"]),
        (["--dataset_train_split", "train[:1]", "--num_generations", "2"], ["has 1 prompts, but one rollout takes 2"]),
        (["--dataset_streaming"], ["is a stream", "set `max_steps`"]),
        (["--dataset_streaming", "--max_steps", "3", "--drop_text_encoders"], ["`drop_text_encoders` is True"]),
        (["--reward_funcs", "shaeps"], ["'shaeps'", "shapes"]),
        (["--policy", "ddim"], ["`policy` is 'ddim'", "flow_sde"]),
        (["--eval_num_inference_steps", "1"], ["1 denoising step", "`eval_num_inference_steps`"]),
        (["--report_to", "wnadb"], ["`report_to` is 'wnadb'", "wandb"]),
        (["--preview_reward_weights", "1"], ["without `preview_reward_funcs`"]),
        (["--model_name_or_path", "nobody/nothing"], ["`model` 'nobody/nothing'", "Hub"]),
        (["--height", "31"], ["`height` is 31"]),
        (["--lora_target_modules", "no_such_layer"], ["no_such_layer"]),
        (
            ["--dataset_name", "PROMPTS"],
            ["row 1 has None in column 'prompt'", "every prompt must be a non-empty string"],
        ),
    ],
)
def test_mistakes_are_one_sentence(argv, parts, capsys, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": null}\n')
    argv = [str(tmp_path / "p.jsonl") if part == "PROMPTS" else part for part in argv]
    assert main(["train", *SHAPES, *BATCH, *argv, "--dry_run", "--output_dir", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip() and "Generating" not in line]
    assert len(lines) == 1, err
    for part in ["trl-progrpo train: error:", *parts]:
        assert part in lines[0]
