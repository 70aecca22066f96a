# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Prompts are encoded once, each by itself; the families' side is in tests/families/test_prompt_cache_families.py."""

import os
import warnings

import pytest
import torch
from safetensors import safe_open

from trl_progrpo.prompt_cache import PromptCache


PROMPTS = ["a red circle", "two blue squares", "a green triangle"]


@pytest.fixture
def family(make_family):
    return make_family(guidance_scale=3.0)


def same(one, other):
    return all(
        torch.equal(a[name], b[name])
        for a, b in ((one.positive, other.positive), (one.negative, other.negative))
        for name in a
    )


def files(folder):
    return sorted(path for path in folder.iterdir())


class TestPromptCache:
    @pytest.mark.parametrize("on_disk", [False, True])
    def test_a_prompt_is_encoded_once_and_by_itself(self, family, tmp_path, on_disk):
        batches = []
        encode = family.encode_prompts
        family.encode_prompts = lambda prompts, negative=None: (
            batches.append(list(prompts)) or encode(prompts, negative)
        )
        cache = PromptCache(family, str(tmp_path) if on_disk else None)
        first = cache([PROMPTS[0], PROMPTS[1], PROMPTS[0]])
        assert batches == [[PROMPTS[0]], [PROMPTS[1]]]
        assert len(first) == 3
        assert torch.equal(first.positive["prompt_embeds"][0], first.positive["prompt_embeds"][2])
        again = cache([PROMPTS[1], PROMPTS[0]])
        assert cache.encoded == len(batches) == 2
        assert same(again, first.rows(torch.tensor([1, 0])))
        assert len(files(tmp_path)) == (2 if on_disk else 0)

    def test_entries_do_not_depend_on_their_company(self, family):
        alone = PromptCache(family)([PROMPTS[2]])
        together = PromptCache(family)(PROMPTS)
        assert same(alone, together.rows(torch.tensor([2])))

    def test_everything_that_changes_an_embedding_has_a_key_of_its_own(self, make_family, make_pipeline):
        pipeline = make_pipeline()

        def key(prompt="a red circle", negative=None, pipeline=pipeline, **kwargs):
            return PromptCache(make_family(pipeline, **kwargs))._key(prompt, negative)

        other_weights = make_pipeline()
        with torch.no_grad():
            other_weights.text_encoder_2.text_projection.weight.mul_(1.5)
        half, named = make_pipeline(), make_pipeline()
        half.transformer.to(torch.bfloat16)
        named.register_to_config(_name_or_path="somebody/else")
        keys = [
            key(),
            key("a red square"),
            key(negative=""),
            key(negative="blurry"),
            key(guidance_scale=3.0),
            key(height=4),
            key(max_sequence_length=12),
            key(pipeline=other_weights),
            key(pipeline=half),
            key(pipeline=named),
        ]
        assert len(set(keys)) == len(keys)
        assert key() == keys[0]
        # The same weights in another object, and another scale with the same two sides.
        assert key(pipeline=make_pipeline()) == keys[0]
        assert key(guidance_scale=7.0) == keys[4]

    def test_memory_forgets_what_was_not_used_for_the_longest_time(self, family):
        one = PromptCache(family)
        one(PROMPTS[:1])
        cache = PromptCache(family, max_bytes=2 * one._bytes)
        # A request larger than the limit is answered whole.
        assert len(cache(PROMPTS)) == 3
        assert (len(cache._memory), cache._bytes) == (2, cache.max_bytes)
        cache(PROMPTS[1:])
        assert cache.encoded == 3
        cache([PROMPTS[1], PROMPTS[0]])
        assert cache.encoded == 4
        cache(PROMPTS[1:2])
        assert cache.encoded == 4

    def test_what_is_known_ahead_is_not_forgotten_without_encoders(self, family):
        cache = PromptCache(family, max_bytes=0)
        cache.encode(PROMPTS)
        expected = {
            name: tensor.clone() for name, tensor in cache._load(cache._key(PROMPTS[0], None)).positive.items()
        }
        cache.drop_text_encoders()
        assert cache.dropped == ("text_encoder", "text_encoder_2")
        assert family.pipeline.text_encoder is None
        for _ in range(2):
            conditioning = cache(PROMPTS)
        assert all(torch.equal(conditioning.positive[name][:1], tensor) for name, tensor in expected.items())
        assert cache.encoded == 3
        with pytest.raises(ValueError, match=r"prompt 'a new one' .* `drop_text_encoders`") as error:
            cache(["a new one"])
        assert "\n" not in str(error.value)

    def test_entries_keep_no_other_memory_alive(self, family):
        cache = PromptCache(family)
        cache(PROMPTS)
        for entry in cache._memory.values():
            for tensor in (*entry.positive.values(), *entry.negative.values()):
                assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()

    def test_autocast_around_it_changes_nothing(self, family):
        expected = PromptCache(family)(PROMPTS)
        with torch.autocast("cpu", torch.bfloat16):
            assert same(PromptCache(family)(PROMPTS), expected)


class TestFolder:
    def test_other_processes_find_the_entries(self, make_family, tmp_path):
        first = PromptCache(make_family(guidance_scale=3.0), str(tmp_path))
        expected = first(PROMPTS, "blurry")
        second = PromptCache(make_family(guidance_scale=3.0), str(tmp_path))
        assert same(second(PROMPTS, "blurry"), expected)
        assert second.encoded == 0
        with safe_open(files(tmp_path)[0], framework="pt") as file:
            assert file.metadata()["prompt"] in PROMPTS

    def test_half_precision_is_kept(self, make_family, make_pipeline, tmp_path):
        family = make_family(make_pipeline().to(torch.bfloat16), guidance_scale=3.0)
        expected = PromptCache(family, str(tmp_path))(PROMPTS)
        cache = PromptCache(family, str(tmp_path))
        assert same(cache(PROMPTS), expected)
        assert (cache.encoded, expected.positive["prompt_embeds"].dtype) == (0, torch.bfloat16)

    @pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other"])
    def test_a_damaged_file_is_written_again(self, family, tmp_path, damage):
        cache = PromptCache(family, str(tmp_path))
        expected = cache(PROMPTS[:1])
        (path,) = files(tmp_path)
        content = path.read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        path.write_bytes({"cut": content[:-1], "empty": b"", "flipped": flipped, "other": b"not safetensors"}[damage])
        assert same(cache(PROMPTS[:1]), expected)
        assert cache.encoded == 2
        assert files(tmp_path) == [path]
        assert path.read_bytes()[-64:] == content[-64:]

    def test_an_interrupted_write_leaves_nothing(self, family, tmp_path, monkeypatch):
        def fail(*args):
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            PromptCache(family, str(tmp_path))(PROMPTS)
        assert files(tmp_path) == []

    def test_a_folder_that_cannot_be_written_is_refused(self, family, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match=r"`prompt_cache_dir` .*file.* cannot be written"):
            PromptCache(family, str(tmp_path / "file"))


class TestTrainer:
    def test_a_run_encodes_every_prompt_once(self, make_trainer):
        trainer = make_trainer(max_steps=4)
        trainer.train()
        # 5 prompts, 2 per rollout.
        assert trainer.prompt_cache.encoded == 5

    def test_memory_folder_and_dropped_encoders_train_alike(self, make_trainer, adapter_of, tmp_path):
        from datasets import Dataset

        evaluation = Dataset.from_dict({"prompt": ["a white square", "a red circle"]})
        kwargs = {"max_steps": 1, "guidance_scale": 2.0, "learning_rate": 1e-2, "eval_dataset": evaluation}
        adapters, rewards = [], []
        for options in ({}, {"prompt_cache_dir": str(tmp_path / "prompts")}, {"drop_text_encoders": True}):
            trainer = make_trainer(**kwargs, **options)
            trainer.train()
            adapters.append(adapter_of(trainer))
            rewards.append(trainer.evaluate()["eval_reward"])
        assert rewards[0] == rewards[1] == rewards[2]
        for adapter in adapters[1:]:
            assert all(torch.equal(adapters[0][name], weight) for name, weight in adapter.items())
        assert trainer.prompt_cache.encoded == 6
        assert trainer.pipeline.text_encoder is trainer.pipeline.text_encoder_2 is None
        with pytest.raises(ValueError, match=r"'something new'.*drop_text_encoders"):
            trainer.generate(["something new"])
        # The card is for a stock pipeline, which has its encoders.
        trainer.save_model()
        card = open(os.path.join(trainer.args.output_dir, "README.md")).read()
        assert "text_encoder=None" not in card
        assert "text_encoder_3=None" in card

    def test_long_prompts_are_counted_in_one_warning_and_stay_apart(self, make_trainer):
        # The embedded tokenizer reads 10 tokens, two of them special.
        long = "a red circle above a blue square and a"
        prompts = [f"{long} {shape}" for shape in ("circle", "square")] + PROMPTS
        with pytest.warns(
            UserWarning, match=r"^2 of 5 prompts have more than the 10 tokens .* longest has 12"
        ) as caught:
            trainer = make_trainer(prompts=prompts, max_steps=1, train_sampling_strategy="sequential")
        assert len([w for w in caught if "tokens that the text encoder" in str(w.message)]) == 1
        trainer.train()
        assert trainer.last_rollout.prompt_index.tolist() == [0] * 4 + [1] * 4

    def test_short_prompts_are_not_warned_about(self, make_trainer):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*tokens that the text encoder reads.*")
            make_trainer()
