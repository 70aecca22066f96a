# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Every option has a rule for resumed runs, and the rule is what happens."""

import copy
import json
from dataclasses import fields

import pytest
from transformers import HfArgumentParser
from transformers.training_args import OptimizerNames

from trl_progrpo import ProGRPOConfig
from trl_progrpo.checkpoint_folders import check_checkpoint
from trl_progrpo.options import INHERITED_RULES, REFUSED_WITH, RESUME_RULES, resume_rule


FIELDS = {field.name: field for field in fields(ProGRPOConfig)}
OWN = [name for name in ProGRPOConfig.__annotations__ if name in FIELDS]
ENUMS = {"optim": OptimizerNames.SGD, "lr_scheduler_type": "cosine", "ema_decay": 0.5, "greater_is_better": False}
# Judged by more than the value alone.
NOT_COMPARED = ("max_steps",)


def test_every_option_has_a_rule():
    for name, field in FIELDS.items():
        assert (name in OWN) != (name in INHERITED_RULES), name
        assert resume_rule(field) in RESUME_RULES, name
    assert set(REFUSED_WITH) <= set(RESUME_RULES)


def test_transformers_parser_sees_what_argparse_takes():
    parser = HfArgumentParser(ProGRPOConfig)
    assert FIELDS["seed"].name == "seed"
    assert FIELDS["noise_level"].metadata["resume"] == "rollout"
    assert any(action.dest == "noise_level" and action.help for action in parser._actions)


@pytest.fixture(scope="module")
def checkpoints(pipeline_path, tmp_path_factory):
    """Checkpoints in the midst of a rollout and between two, and one whose evaluations were compared."""
    from trl_progrpo import ProGRPOTrainer

    folder = tmp_path_factory.mktemp("options")
    args = ProGRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=4, num_generations=4, num_inference_steps=3, max_steps=2,
        steps_per_generation=2, save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, logging_steps=1,
        num_validation_prompts=0, ema_decay=0.9,
    )  # fmt: skip
    rewards = [lambda prompts, images, **columns: list(range(len(prompts)))]
    ProGRPOTrainer(pipeline_path, rewards, args, train_dataset=["a red circle", "a blue square"]).train()
    return args, folder / "checkpoint-1", folder / "checkpoint-2"


def changed(name, value):
    if name in ENUMS:
        return ENUMS[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return 1 if value is None else f"other {value}" if isinstance(value, str) else [value]


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in NOT_COMPARED])
def test_another_value_is_refused_by_name_or_taken(checkpoints, name):
    args, inside, between = checkpoints
    other = copy.copy(args)
    other.max_steps = 9
    setattr(other, name, changed(name, getattr(args, name)))
    rule = resume_rule(FIELDS[name])
    if rule == "sharding":
        # A launcher's, which is looked at by what it left in the checkpoint.
        return
    for folder, refused in ((inside, rule in ("order", "state", "rollout")), (between, rule in ("order", "state"))):
        if refused:
            with pytest.raises(
                ValueError, match=rf"^`{name}` is .*, but .* in the run that saved .*; use that again"
            ) as error:
                check_checkpoint(str(folder), other)
            assert "\n" not in str(error.value)
        else:
            check_checkpoint(str(folder), other)


@pytest.mark.parametrize("change", [{"ema_decay": None}, {"lr_scheduler_type": "greedy"}])
def test_what_is_set_or_unset_is_refused(checkpoints, change):
    args, _, between = checkpoints
    other = copy.copy(args)
    vars(other).update(max_steps=9, **change)
    with pytest.raises(ValueError, match=f"^`{next(iter(change))}` is .* in the run that saved"):
        check_checkpoint(str(between), other)


def test_the_best_so_far_is_of_one_measure(checkpoints, tmp_path):
    import shutil

    from trl_progrpo.manifest import write_manifest

    args, _, between = checkpoints
    folder = shutil.copytree(between, tmp_path / "checkpoint-2")
    for file, changes in (
        ("trainer_state.json", {"best_metric": 1.0}),
        ("training_args.json", {"metric_for_best_model": "reward"}),
    ):
        (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **changes}))
    write_manifest(folder, world_size=1)
    other = copy.copy(args)
    vars(other).update(max_steps=9, metric_for_best_model=None)
    check_checkpoint(str(folder), other)
    other.metric_for_best_model = "rewards/a/mean"
    with pytest.raises(ValueError, match=r"`metric_for_best_model` is rewards/a/mean, but reward in the run"):
        check_checkpoint(str(folder), other)


def test_a_checkpoint_that_does_not_tell_what_its_optimiser_was_made_with(checkpoints, tmp_path):
    import shutil

    from trl_progrpo.manifest import write_manifest

    args, _, between = checkpoints
    folder = shutil.copytree(between, tmp_path / "checkpoint-2")
    path = folder / "run_state_0.json"
    state = json.loads(path.read_text())
    del state["optimizer"]
    path.write_text(json.dumps(state))
    write_manifest(folder, world_size=1)
    other = copy.copy(args)
    vars(other).update(max_steps=9, adam_beta2=0.5)
    with pytest.raises(
        ValueError, match=r"`adam_beta2` is 0.5, but 0.999 .* does not tell what its optimiser was made with"
    ):
        check_checkpoint(str(folder), other)
