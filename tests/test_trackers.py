# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What trackers were given is read back from what they wrote."""

import io
import json
import math
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from trl_progrpo import plots
from trl_progrpo.monitoring import (
    Checkpoint,
    GroupWatch,
    TrackerImagesCallback,
    WatchedGroup,
    check_trackers,
    print_completions,
)
from trl_progrpo.monitoring.group_plots import (
    by_reward,
    histogram_edges,
    previews_picture,
    reward_histogram,
    survivors_picture,
)
from trl_progrpo.monitoring.trackers import PACKAGES
from trl_progrpo.plots import draw_image_grid
from trl_progrpo.types import PruneRecord
from trl_progrpo.validation import distinct_rows, validation_prompts
from trl_progrpo.words import change_in_words


IMAGES = {"images/validation", "images/prune_step_1", "images/reward_histogram"}


def quiet_of_pictures(trainer):
    """Whether nothing was drawn: pictures of the base model are made with the first set."""
    callbacks = trainer.callback_handler.callbacks
    [callback] = [callback for callback in callbacks if isinstance(callback, TrackerImagesCallback)]
    return callback._before is None


@pytest.fixture(scope="session")
def same_as():
    """A function that tells whether a written picture is the given one, up to nothing."""

    def same(path_or_bytes, image):
        with Image.open(path_or_bytes) as written:
            return np.array_equal(np.asarray(written.convert("RGB")), np.asarray(image))

    return same


def wandb_history(path):
    """The rows that were logged to an offline run; its file is LevelDB's log of protocol buffers after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, record, rows = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if left < 7 or kind == 0:
            position += left
            continue
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        # Whole, or the last part of one; first and middle parts go on.
        if kind in (1, 4):
            message = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            record = b""
            if message.WhichOneof("record_type") == "history":
                items = message.history.item
                rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


class TestTensorBoard:
    @pytest.fixture
    def read(self):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        def read(folder):
            events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
            events.Reload()
            return events

        return read

    def test_scalars_and_pictures_are_read_back(self, make_trainer, read, tmp_path, monkeypatch, same_as, redness):
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
        # A learning rate that shows after three steps.
        trainer = make_trainer(report_to="tensorboard", max_steps=3, log_images_steps=2, learning_rate=0.3)
        trainer.train()
        events = read(tmp_path / "tb")
        tags = events.Tags()
        assert set(tags["images"]) == IMAGES
        # Every second step, and the last.
        assert [event.step for event in events.Images("images/validation")] == [2, 3]
        logged = {e["step"]: e["reward"] for e in trainer.state.log_history if "reward" in e}
        read_back = {event.step: event.value for event in events.Scalars("train/reward")}
        assert read_back == pytest.approx(logged)
        assert {"train/prune/step_1/reward_std_after", "train/sampling/nfe"} <= set(tags["scalars"])

        def last(name):
            return io.BytesIO(events.Images(name)[-1].encoded_image_string)

        prompts, group = validation_prompts(trainer), trainer.group_watch.group
        before, now = trainer.generate(prompts, adapter=False), trainer.generate(prompts)
        assert not torch.equal(before, now)
        scores = [redness(prompts, images) for images in (before, now)]
        title = change_in_words(*scores)
        assert title.startswith("mean reward ")
        drawn = draw_image_grid([before, now], ["before", "now"], prompts, scores, title=title)
        assert same_as(last("images/validation"), drawn)
        assert same_as(last("images/prune_step_1"), previews_picture(group.checkpoints[0], group))
        assert same_as(last("images/reward_histogram"), reward_histogram(group))

    def test_plain_grpo_shows_its_survivors(self, make_trainer, read, tmp_path, monkeypatch):
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
        make_trainer(
            report_to="tensorboard", max_steps=1, num_expansions=None, prune_steps=None, prune_sizes=None,
            num_validation_prompts=0,
        ).train()  # fmt: skip
        assert set(read(tmp_path / "tb").Tags()["images"]) == {"images/survivors", "images/reward_histogram"}

    def test_full_fine_tuning_remembers_its_base(self, make_trainer, read, tmp_path, monkeypatch):
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
        trainer = make_trainer(report_to="tensorboard", max_steps=1, peft_config=None)
        base = trainer.generate(validation_prompts(trainer))
        trainer.train()
        [callback] = [c for c in trainer.callback_handler.callbacks if isinstance(c, TrackerImagesCallback)]
        assert torch.equal(callback._before, base)


class TestTrackio:
    @pytest.fixture
    def trackio(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
        # Read when the module is imported.
        for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
            monkeypatch.delitem(sys.modules, name)
        return pytest.importorskip("trackio")

    def test_scalars_and_pictures_are_read_back_from_one_run(self, make_trainer, trackio, tmp_path, same_as):
        trainer = make_trainer(
            report_to="trackio", project="progrpo-test", max_steps=2, log_images_steps=1,
            eval_dataset=Dataset.from_dict({"prompt": ["a red circle"]}), per_device_eval_batch_size=1,
        )  # fmt: skip
        trainer.evaluate()
        trainer.train()
        trainer.evaluate()
        trackio.finish()
        from trackio.sqlite_storage import SQLiteStorage

        runs = list(trackio.Api().runs("progrpo-test"))
        assert len(runs) == 1, "the evaluation after training belongs to the same run"
        rows = SQLiteStorage.get_logs("progrpo-test", runs[0].name)
        logged = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
        assert [row["train/reward"] for row in rows if "train/reward" in row] == pytest.approx(logged)
        assert sum("eval/reward" in row for row in rows) == 2
        with_images = [row for row in rows if IMAGES <= set(row)]
        assert [row["train/global_step"] for row in with_images] == [1, 2]
        written = list((tmp_path / "trackio").rglob("*.png"))
        assert len(written) == 2 * len(IMAGES)
        last = reward_histogram(trainer.group_watch.group)
        assert sum(same_as(path, last) for path in written) == 1


class TestWandb:
    def test_an_offline_run_holds_scalars_and_pictures(self, make_trainer, tmp_path, monkeypatch, same_as):
        wandb = pytest.importorskip("wandb")
        for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
            monkeypatch.setenv(name, value)
        trainer = make_trainer(report_to="wandb", max_steps=2, log_images_steps=1)
        trainer.train()
        wandb.finish()
        # Its other process writes the last of the file when it goes.
        wandb.teardown()

        [file] = tmp_path.rglob("run-*.wandb")
        rows = wandb_history(file)
        logged = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
        assert [row["train/reward"] for row in rows if "train/reward" in row] == pytest.approx(logged)
        pictures = [row for row in rows if {f"{name}.path" for name in IMAGES} <= set(row)]
        assert [row["train/global_step"] for row in pictures] == [1, 2]
        folder = file.parent / "files"
        assert pictures[-1]["images/reward_histogram._type"] == "image-file"
        last = folder / pictures[-1]["images/reward_histogram.path"]
        assert same_as(last, reward_histogram(trainer.group_watch.group))


class TestCheck:
    def test_of_names_and_packages(self, make_trainer, monkeypatch):
        check_trackers(["wandb", "tensorboard"])
        with pytest.raises(ValueError, match=r"`report_to` is 'wnadb'; use none, or some of .*wandb"):
            make_trainer(report_to="wnadb")
        monkeypatch.setitem(PACKAGES, "wandb", ("no_such_package",))
        with pytest.raises(ValueError, match=r"`report_to` is 'wandb', but .* run `pip install no_such_package`"):
            make_trainer(report_to=["tensorboard", "wandb"])


class TestGroupWatch:
    def record(self, step, rewards, kept, prompts):
        count = len(rewards)
        return PruneRecord(step, torch.tensor(prompts), torch.arange(count), torch.tensor(rewards), torch.tensor(kept))

    def test_keeps_the_first_group_alone_and_small(self):
        watch = GroupWatch(max_side=4)
        images = torch.zeros(4, 3, 8, 16)
        images[1] = 1.0
        watch(images, self.record(1, [0.1, 0.9, 0.5, 0.5], [False, True, True, False], [0, 0, 1, 1]))
        watch(images, self.record(1, [0.5, 0.5, 0.5, 0.5], [True, True, True, True], [2, 2, 3, 3]))
        [checkpoint] = watch._checkpoints
        assert checkpoint.images.shape == (2, 3, 2, 4)
        assert checkpoint.images[:, 0, 0, 0].tolist() == [0, 255]
        assert checkpoint.rewards.tolist() == pytest.approx([0.1, 0.9])
        assert checkpoint.kept.tolist() == [False, True]

    def test_a_rollout_that_was_broken_off_leaves_nothing(self):
        watch = GroupWatch()
        for step in (1, 2, 1):
            watch(torch.zeros(2, 3, 4, 4), self.record(step, [0.0, 1.0], [True, False], [0, 0]))
        assert [checkpoint.step_index for checkpoint in watch._checkpoints] == [1]

    def test_it_sees_what_the_sampler_pruned(self, make_trainer):
        trainer = make_trainer(prune_sizes=[5], num_expansions=6, max_steps=1, log_images_steps=1)
        trainer.train()
        group, rollout = trainer.group_watch.group, trainer.last_rollout
        first = rollout.prompt_index == 0
        assert group.prompt == trainer.last_prompts[0]
        assert group.global_step == 0
        assert torch.equal(group.rewards, rollout.rewards[first])
        assert [checkpoint.step_index for checkpoint in group.checkpoints] == [1, 4]
        for checkpoint, record in zip(group.checkpoints, rollout.prune_records):
            rows = record.prompt_index == 0
            assert torch.equal(checkpoint.rewards, record.rewards[rows])
            assert torch.equal(checkpoint.kept, record.kept[rows])
        # The last selection is among finished images: its survivors are the group's.
        last = group.checkpoints[-1]
        assert torch.equal(last.images[last.kept], group.images)
        assert quiet_of_pictures(trainer), "nothing is drawn without a tracker"


class TestGroupPlots:
    colours = torch.tensor([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0], [200, 0, 200], [0, 200, 200]])
    rewards = torch.tensor([0.32, 0.92, 0.12, 0.52, 0.22, 0.62])
    kept = torch.tensor([False, True, True, False, True, True])

    @pytest.fixture
    def group(self):
        """Six rows of one colour each, of which the second, third, fifth and sixth went on."""
        images = self.colours[:, :, None, None].expand(-1, -1, 8, 8).to(torch.uint8)
        checkpoint = Checkpoint(1, images, torch.arange(6), self.rewards, self.kept)
        survivors = images[self.kept], self.rewards[self.kept], torch.zeros(4)
        return WatchedGroup("a red circle", 0, 4, (checkpoint,), *survivors)

    def centres(self, picture):
        """Where the tile of each row is, `(y, x)`, or `None`."""
        pixels = np.asarray(picture).astype(int)
        found = [np.argwhere((pixels == colour).all(-1)) for colour in self.colours.numpy()]
        return [tuple(where.mean(0).round().astype(int)) if len(where) else None for where in found]

    def test_survivors_above_and_pruned_below_each_from_the_highest_reward_down(self, group):
        centres = self.centres(previews_picture(group.checkpoints[0], group))
        by_place = sorted(range(6), key=lambda row: centres[row])
        assert by_place == [1, 5, 4, 2, 3, 0]
        assert len({centres[row][0] for row in (1, 5, 4, 2)}) == len({centres[row][0] for row in (3, 0)}) == 1
        centres = self.centres(survivors_picture(group))
        assert centres[0] is centres[3] is None
        assert sorted((1, 2, 4, 5), key=lambda row: centres[row]) == [1, 5, 4, 2]
        # Below one another where there is no room beside.
        centres = self.centres(previews_picture(group.checkpoints[0], group, columns=1))
        assert sorted(range(6), key=lambda row: centres[row]) == [1, 5, 4, 2, 3, 0]
        assert len({x for _, x in centres}) == 1

    def test_every_score_is_written_below_its_tile(self, group):
        [checkpoint] = group.checkpoints
        picture = np.asarray(previews_picture(checkpoint, group)).astype(int)
        for row, (y, x) in enumerate(self.centres(picture)):
            rewards = self.rewards.clone()
            rewards[row] += 0.01
            other = np.asarray(previews_picture(replace(checkpoint, rewards=rewards), group)).astype(int)
            changed = np.argwhere((picture != other).any(-1))
            assert len(changed)
            assert (changed[:, 0] > y + 40).all()
            assert (changed[:, 0] < y + 80).all()
            assert (abs(changed[:, 1] - x) < 40).all()

    def test_the_histogram_counts_the_group_before_and_after(self, group, monkeypatch):
        figures = []
        draw = plots._rendered
        monkeypatch.setattr(plots, "_rendered", lambda figure: figures.append(figure) or draw(figure))
        reward_histogram(group)
        [axis] = figures[0].axes
        before, after = ([round(bar.get_height()) for bar in bars] for bars in axis.containers)
        # Twenty bars of 0.05.
        assert [bar for bar in range(20) for _ in range(before[bar])] == [2, 4, 6, 10, 12, 18]
        assert [bar for bar in range(20) for _ in range(after[bar])] == [2, 4, 12, 18]
        assert axis.get_title(loc="left") == "Previews after step 1: 6 → 4"

    def test_rewards_without_a_value_come_last(self):
        order = by_reward(torch.tensor([0.1, float("nan"), 0.7, float("-inf")]))
        assert order.tolist()[:2] == [2, 0]
        assert set(order.tolist()) == {0, 1, 2, 3}

    @pytest.mark.parametrize(
        ("rewards", "ends"),
        [([0.25, 0.5], (0, 1)), ([-1.0, 3.0, math.nan], (-1, 3)), ([5.0, 5.0], (4.5, 5.5)), ([math.nan], (0, 1))],
    )
    def test_edges_hold_all_rewards(self, rewards, ends):
        edges = histogram_edges(rewards)
        assert (edges[0], edges[-1], len(edges)) == (*ends, 21)


class TestCompletions:
    def printed(self, trainer, count, width=80):
        from rich.console import Console

        stream = io.StringIO()
        console = Console(file=stream, width=width, highlight=False)
        names = trainer.reward_runner.names
        print_completions(trainer.last_prompts, trainer.last_rollout, names, 7, count, console)
        return stream.getvalue()

    def test_one_line_per_survivor_from_the_highest_reward_down(self, make_trainer, capsys):
        trainer = make_trainer(max_steps=1)
        trainer.train()
        assert "Advantage" not in capsys.readouterr().err, "only where it is asked for"
        text, rollout = self.printed(trainer, count=6), trainer.last_rollout
        assert "Step 7" in text
        assert "redness" in text
        lines = [line.rsplit(maxsplit=3) for line in text.splitlines() if line.rstrip()[-3:-2] == "."]
        assert len(lines) == 6
        first = rollout.rewards[rollout.prompt_index == 0].sort(descending=True).values
        assert [float(line[-2]) for line in lines[:4]] == pytest.approx(first.tolist(), abs=0.0051)
        advantages = rollout.advantages[rollout.prompt_index == 0].sort(descending=True).values
        assert [float(line[-1]) for line in lines[:4]] == pytest.approx(advantages.tolist(), abs=0.0051)
        assert all(prompt in text for prompt in trainer.last_prompts[:2])

    def test_brackets_are_no_markup_and_long_prompts_wrap(self, make_trainer):
        prompts = ["a [red]circle[/red] on a wall " + "very " * 40, *"bcde"]
        trainer = make_trainer(max_steps=1, prompts=prompts, train_sampling_strategy="sequential")
        trainer.train()
        text = self.printed(trainer, count=4)
        assert "[red]circle[/red]" in text
        assert max(map(len, text.splitlines())) <= 80

    def test_printed_with_every_log_on_standard_error(self, make_trainer, capsys):
        trainer = make_trainer(max_steps=2, log_completions=True, num_completions_to_print=1)
        trainer.train()
        out, err = capsys.readouterr()
        assert err.count("Advantage") == 2
        assert "Advantage" not in out


class TestValidationPrompts:
    def test_the_first_different_ones_of_the_evaluation_set(self, make_trainer):
        held_out = Dataset.from_dict({"prompt": ["x", "x", "y", "z"], "number": [1, 2, 3, 4]})
        assert validation_prompts(make_trainer(eval_dataset=held_out, num_validation_prompts=2)) == ["x", "y"]
        assert validation_prompts(make_trainer(eval_dataset={"a": held_out}, num_validation_prompts=9)) == list("xyz")
        assert validation_prompts(make_trainer(num_validation_prompts=1)) == ["a red circle"]
        assert validation_prompts(make_trainer(num_validation_prompts=0)) == []

    def test_a_stream_is_read_no_further_than_needed(self):
        def stream():
            yield {"prompt": "a"}
            yield {"prompt": "b"}
            raise AssertionError("read too far")

        assert [row["prompt"] for row in distinct_rows(stream(), "prompt", 2)] == ["a", "b"]
        assert distinct_rows(stream(), "prompt", 0) == []

    @pytest.mark.parametrize(
        "options", [{"num_validation_prompts": -1}, {"log_images_steps": 0}, {"num_completions_to_print": 0}]
    )
    def test_bad_numbers_are_refused(self, make_config, options):
        [name] = options
        with pytest.raises(ValueError, match=f"`{name}` is"):
            make_config(**options)
