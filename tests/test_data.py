# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import json
import os
import re
import subprocess
import sys
from itertools import islice

import pytest
import torch
from datasets import Dataset, DatasetDict

from trl_progrpo.data import (
    RolloutSampler,
    RolloutStream,
    as_prompts,
    check_prompts,
    check_size,
    collate_rows,
    distinct_prompts,
)


def rollouts_of(sampler, epoch=0):
    sampler.set_epoch(epoch)
    indices, size = list(sampler), sampler.prompts_per_rollout
    return [indices[i : i + size] for i in range(0, len(indices), size)]


class TestRolloutSampler:
    @pytest.mark.parametrize(
        ("prompts", "size", "repeats"), [(12, 4, 1), (12, 4, 3), (10, 4, 2), (5, 5, 1), (7, 3, 4)]
    )
    def test_an_epoch_visits_every_prompt_and_repeats_every_rollout(self, prompts, size, repeats):
        sampler = RolloutSampler(prompts, size, repeats, seed=0)
        batches = rollouts_of(sampler)
        assert len(sampler) == len(batches) * size
        assert len(batches) == -(-prompts // size) * repeats
        groups = [batches[i : i + repeats] for i in range(0, len(batches), repeats)]
        assert all(batch == group[0] for group in groups for batch in group)
        visits = [index for group in groups for index in group[0]]
        assert set(visits) == set(range(prompts))
        # The last rollout is filled up, by prompts that it does not have yet.
        assert len(visits) - prompts < size
        assert all(len(set(group[0])) == size for group in groups)

    def test_epochs_and_seeds_differ_and_repeat(self):
        one = RolloutSampler(20, 4, 1, seed=0)
        assert rollouts_of(one, 0) != rollouts_of(one, 1)
        assert rollouts_of(one, 0) == rollouts_of(RolloutSampler(20, 4, 1, seed=0), 0)
        assert rollouts_of(one, 0) != rollouts_of(RolloutSampler(20, 4, 1, seed=1), 0)

    def test_without_shuffling_the_order_is_the_datasets(self):
        sampler = RolloutSampler(5, 2, 2, seed=0, shuffle=False)
        assert rollouts_of(sampler, 3) == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 0], [4, 0]]

    def test_too_few_prompts(self):
        with pytest.raises(
            ValueError, match=r"`train_dataset` has 3 prompts, but one rollout takes 4; give more prompts"
        ):
            RolloutSampler(3, 4, 1, seed=0)
        check_size(4, 4)


TALK = [{"role": "system", "content": "You draw."}, {"role": "user", "content": "a red fox"}]


def stream_of(count, shards=1, **columns):
    return Dataset.from_dict({"prompt": [f"p{i}" for i in range(count)], **columns}).to_iterable_dataset(shards)


class TestRolloutStream:
    @pytest.mark.parametrize(("prompts", "size", "repeats"), [(12, 4, 1), (10, 4, 2), (5, 5, 3), (7, 3, 2)])
    def test_every_pass_visits_every_prompt_and_every_rollout_is_repeated(self, prompts, size, repeats):
        rows = iter(RolloutStream(stream_of(prompts), "prompt", size, repeats, seed=0))
        rollouts = [[row["prompt"] for row in islice(rows, size)] for _ in range(3 * prompts * repeats)]
        groups = [rollouts[i : i + repeats] for i in range(0, len(rollouts), repeats)]
        assert all(rollout == group[0] for group in groups for rollout in group)
        visits = [prompt for group in groups for prompt in group[0]]
        everything = {f"p{i}" for i in range(prompts)}
        # Rollouts may straddle two passes over the data; the order of the visits does not.
        passes = [visits[i : i + prompts] for i in range(0, prompts * 3, prompts)]
        assert all(len(one) == len(everything) and set(one) == everything for one in passes)
        assert passes[0] != passes[1]

    def test_seeds_differ_and_repeat(self):
        def first(seed):
            return [row["prompt"] for row in islice(RolloutStream(stream_of(50), "prompt", 5, 1, seed), 20)]

        assert first(0) == first(0)
        assert first(0) != first(1)

    def test_without_shuffling_the_order_is_the_streams(self):
        rows = islice(RolloutStream(stream_of(3), "prompt", 2, 2, seed=0, shuffle=False), 12)
        assert [row["prompt"] for row in rows] == [
            "p0",
            "p1",
            "p0",
            "p1",
            "p2",
            "p0",
            "p2",
            "p0",
            "p1",
            "p2",
            "p1",
            "p2",
        ]

    def test_the_buffer_is_small(self):
        """Rows are asked for as they are needed, not all at the start."""
        read = []
        stream = stream_of(20_000).map(lambda row: read.append(1) or row)
        list(islice(RolloutStream(stream, "prompt", 4, 1, seed=0), 40))
        assert len(read) < 3000

    @pytest.mark.parametrize(
        ("prompts", "message"),
        [
            (["a", "b"], "`train_dataset` has 2 prompts, but one rollout takes 4"),
            (["none"], "`train_dataset` has 0 prompts"),
            (["a", None, "b", "c"], "`train_dataset` holds a row that has None in column 'prompt'"),
            ([1, 2, 3, 4], "has 1 in column 'prompt'; every prompt must be"),
        ],
    )
    def test_bad_streams_say_so(self, prompts, message):
        stream = (
            Dataset.from_dict({"prompt": prompts}).to_iterable_dataset().filter(lambda row: row["prompt"] != "none")
        )
        with pytest.raises(ValueError, match=message):
            list(islice(RolloutStream(stream, "prompt", 4, 1, seed=0, shuffle=False), 8))


class TestAsPrompts:
    def test_lists(self):
        texts = as_prompts(["a cat", "a dog"], "caption", "train_dataset")
        assert texts.column_names == ["caption"]
        assert list(texts["caption"]) == ["a cat", "a dog"]
        rows = [{"prompt": "a", "n": 1}]
        assert as_prompts(rows, "prompt", "train_dataset") is rows
        assert as_prompts(None, "prompt", "train_dataset") is None

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ("a cat", "`train_dataset` is the text 'a cat'; give a list"),
            (["a", 3], "`train_dataset` entry 1 has 3; every prompt must be"),
            (["a", " "], "`train_dataset` entry 1 has ' '; every prompt must be"),
            (
                DatasetDict(train=Dataset.from_dict({"prompt": ["a"]}), test=Dataset.from_dict({"prompt": ["b"]})),
                r"holds the splits train, test; give one of them, e.g. dataset\['train'\]",
            ),
        ],
    )
    def test_bad_ones(self, data, message):
        with pytest.raises(ValueError, match=message):
            as_prompts(data, "prompt", "train_dataset")


class TestDistinctPrompts:
    def test_once_each_in_order_and_no_more_than_asked_for(self):
        one = Dataset.from_dict({"prompt": ["b", "a", "b", "c"]})
        assert distinct_prompts([one, None, [{"prompt": "d"}, {"prompt": "a"}]], "prompt") == ["b", "a", "c", "d"]
        assert distinct_prompts([one, [{"prompt": "d"}]], "prompt", limit=2) == ["b", "a", "d"]

    def test_a_stream_is_not_read(self):
        def refuse(row):
            raise AssertionError

        assert distinct_prompts([stream_of(3).map(refuse)], "prompt") == []


class TestCheckPrompts:
    def test_good_ones_pass(self):
        check_prompts(Dataset.from_dict({"prompt": ["a", "b"], "target": [1, 2]}), "prompt", "train_dataset")
        check_prompts([{"text": "a"}], "text", "train_dataset")
        check_prompts(stream_of(2), "prompt", "train_dataset")

    def test_the_row_is_found_wherever_it_is(self):
        """Through an order of its own, and beyond the first of the pieces that are looked at."""
        dataset = Dataset.from_dict({"prompt": ["a"] * 150_000 + ["\t"] + ["b"]})
        with pytest.raises(ValueError, match=r"row 150000 has '\\t'"):
            check_prompts(dataset, "prompt", "train_dataset")
        with pytest.raises(ValueError, match=r"row 1 has '\\t'"):
            check_prompts(dataset.select([150_001, 150_000, 0]), "prompt", "train_dataset")
        check_prompts(dataset.select([0, 150_001]), "prompt", "train_dataset")

    @pytest.mark.parametrize(
        ("dataset", "message"),
        [
            (Dataset.from_dict({"prompt": []}), "`train_dataset` is empty; give"),
            (
                Dataset.from_dict({"caption": ["a"]}),
                r"no column 'prompt' \(`prompt_column`\); its columns are caption",
            ),
            (Dataset.from_dict({"prompt": [1, 2]}), "row 0 has 1 in column 'prompt'; every prompt must be"),
            (Dataset.from_dict({"prompt": ["a", None]}), "row 1 has None in column 'prompt'; every prompt must be"),
            (Dataset.from_dict({"prompt": ["a", "  "]}), "row 1 has '  ' in column 'prompt'; every prompt must be"),
            (
                Dataset.from_dict({"prompt": [["a"], ["b"]]}),
                r"row 0 has \['a'\] in column 'prompt'; every prompt must be",
            ),
            (
                Dataset.from_dict({"prompt": [TALK, TALK]}),
                "row 0 has a conversation in column 'prompt', .* one text; keep",
            ),
            ([{"prompt": TALK}], "row 0 has a conversation in column 'prompt', .* one text; keep"),
            (Dataset.from_dict({"prompt": [TALK]}).to_iterable_dataset(), "row 0 has a conversation .*; keep"),
            ((row for row in [{"prompt": "a"}]), "is generator, which has no length; give"),
            (Dataset.from_dict({"caption": ["a"]}).to_iterable_dataset(), "no column 'prompt' .*columns are caption"),
            (stream_of(1).filter(lambda row: False), "`train_dataset` is empty"),
            (Dataset.from_dict({"prompt": [3]}).to_iterable_dataset(), "row 0 has 3"),
            ([{"prompt": "a"}, "b"], "row 1 is 'b'; give a list of texts, or of dictionaries"),
            (
                [{"prompt": "a", "n": 1}, {"prompt": "b"}],
                r"row 1 has the keys \['prompt'\] and row 0 \['n', 'prompt'\]",
            ),
            (Dataset.from_dict({"prompt": ["a"], "images": [0]}), "has a column 'images', the name .*; rename it"),
            (Dataset.from_dict({"prompt": ["a"], "preview": [0]}), "has a column 'preview', the name .*; rename it"),
        ],
    )
    def test_bad_ones_do_not(self, dataset, message):
        with pytest.raises(ValueError, match=message) as error:
            check_prompts(dataset, "prompt", "train_dataset")
        assert "\n" not in str(error.value)

    def test_the_cure_for_conversations_cures(self):
        dataset = Dataset.from_dict({"prompt": [TALK, TALK]})
        with pytest.raises(ValueError, match="conversation") as error:
            check_prompts(dataset, "prompt", "train_dataset")
        [cure] = re.findall(r"dataset\.map\(.*\)", str(error.value))
        cured = eval(cure, {"dataset": dataset})
        check_prompts(cured, "prompt", "train_dataset")
        assert list(cured["prompt"]) == ["a red fox", "a red fox"]


class TestInTheTrainer:
    prompts = ["a red circle", "two blue squares", "a green triangle", "a yellow square", "three white circles"]

    def test_a_list_and_a_stream_train_as_the_dataset_does(self, make_trainer, adapter_of):
        """Five prompts, two to a rollout: a third rollout of a stream would straddle two passes, so two are compared."""
        dataset = Dataset.from_dict({"prompt": self.prompts, "note": list("abcde")})
        adapters = []
        for data in (dataset, list(self.prompts), dataset.to_iterable_dataset()):
            trainer = make_trainer(
                train_dataset=data, train_sampling_strategy="sequential", eval_dataset=["a red circle"]
            )
            trainer.train()
            adapters.append(adapter_of(trainer))
        assert_equal(adapters[0], adapters[1])
        assert_equal(adapters[0], adapters[2])
        assert trainer.evaluate(["two blue squares"])["eval_num_prompts"] == 1

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_pass_visits_every_prompt_with_its_columns(self, make_trainer, streaming):
        """Five prompts, two to a rollout: three rollouts, or as many as it takes."""
        seen = []

        def reward(prompts, images, note, preview, **columns):
            assert note == [dict(zip(self.prompts, "abcde"))[prompt] for prompt in prompts]
            if not preview:
                seen.append(list(dict.fromkeys(prompts)))
            return [float(i) for i in range(len(prompts))]

        data = Dataset.from_dict({"prompt": self.prompts, "note": list("abcde")})
        trainer = make_trainer(
            train_dataset=data.to_iterable_dataset() if streaming else data, reward_funcs=reward, max_steps=3
        )
        trainer.train()
        assert [len(prompts) for prompts in seen] == [2, 2, 2]
        assert {prompt for prompts in seen for prompt in prompts} == set(self.prompts)
        assert seen != [self.prompts[:2], self.prompts[2:4], [self.prompts[4], self.prompts[0]]]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"max_steps": -1}, "`train_dataset` is a stream, .* set `max_steps`"),
            ({"drop_text_encoders": True}, "`drop_text_encoders` is True, .* or do not stream"),
            ({"eval_dataset": stream_of(3)}, r"`eval_dataset` is a stream; give a fixed set"),
            ({"eval_dataset": {"hard": stream_of(3)}}, r"`eval_dataset\['hard'\]` is a stream; give a fixed set"),
        ],
    )
    def test_what_a_stream_cannot_do(self, make_trainer, changes, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(train_dataset=stream_of(8), **changes)


def assert_equal(one, other):
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(tensor.abs().sum() > 0 for name, tensor in one.items() if "lora_B" in name)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads memory from /proc")
@pytest.mark.parametrize("streaming", [False, True])
def test_a_large_file_takes_little_memory(tmp_path, streaming):
    """A file of 1 GB is loaded, checked and consumed by a process that needs much less than that on top of its imports."""
    path = tmp_path / "prompts.jsonl"
    with path.open("w") as file:
        for i in range(1_000_000):
            file.write(json.dumps({"prompt": f"prompt number {i} " + "of many words " * 70, "number": i}) + "\n")
    assert path.stat().st_size > 1e9
    code = f"""if True:
        from itertools import islice
        import threading, time
        from datasets import Dataset, load_dataset
        from trl_progrpo.data import *

        def anonymous():
            # Pages of mapped files are left out: the system takes them back when it needs memory.
            status = dict(line.split(":", 1) for line in open("/proc/self/status"))
            return int(status["RssAnon"].split()[0]) // 1024

        def watch():
            while True:
                seen.append(anonymous())
                time.sleep(0.05)

        check_prompts(Dataset.from_dict({{"prompt": ["a"]}}), "prompt", "x")
        seen = [anonymous()]
        threading.Thread(target=watch, daemon=True).start()
        data = load_dataset("json", data_files={str(path)!r}, split="train", streaming={streaming})
        check_prompts(data, "prompt", "train_dataset")
        distinct_prompts([data], "prompt", LOOKED_AT)
        if {streaming}:
            rows = iter(RolloutStream(data, "prompt", 16, 1, 0))
            for _ in range(200_000):
                next(rows)
        else:
            sampler = iter(RolloutSampler(len(data), 16, 1, 0))
            for _ in range(50_000):
                data[next(sampler)]
        print(max(seen) - seen[0])
    """
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 150, result.stdout


def test_rows_become_columns_of_plain_values():
    rows = [{"prompt": "a", "box": [1, 2], "note": None}, {"prompt": "b", "box": [3], "note": {"x": 1}}]
    assert collate_rows(rows) == {"prompt": ["a", "b"], "box": [[1, 2], [3]], "note": [None, {"x": 1}]}
