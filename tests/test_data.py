# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import pytest
from datasets import Dataset

from trl_progrpo.data import RolloutSampler, check_prompts, check_size, collate_rows


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


class TestCheckPrompts:
    def test_good_ones_pass(self):
        check_prompts(Dataset.from_dict({"prompt": ["a", "b"], "target": [1, 2]}), "prompt", "train_dataset")
        check_prompts([{"text": "a"}], "text", "train_dataset")

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
            ((row for row in [{"prompt": "a"}]), "is generator, which has no length; give"),
            (
                Dataset.from_dict({"prompt": ["a"]}).to_iterable_dataset(),
                "is IterableDataset, which has no length; give",
            ),
            (Dataset.from_dict({"prompt": ["a"], "images": [0]}), "has a column 'images', the name .*; rename it"),
            (Dataset.from_dict({"prompt": ["a"], "preview": [0]}), "has a column 'preview', the name .*; rename it"),
        ],
    )
    def test_bad_ones_do_not(self, dataset, message):
        with pytest.raises(ValueError, match=message) as error:
            check_prompts(dataset, "prompt", "train_dataset")
        assert "\n" not in str(error.value)


def test_rows_become_columns_of_plain_values():
    rows = [{"prompt": "a", "box": [1, 2], "note": None}, {"prompt": "b", "box": [3], "note": {"x": 1}}]
    assert collate_rows(rows) == {"prompt": ["a", "b"], "box": [[1, 2], [3]], "note": [None, {"x": 1}]}
