# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What is trained is what is saved: pipelines that are not plain, adapters beside the trainer's own, scales on disk."""

import json
import re
import shutil

import peft
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trl_progrpo.adapters import ADAPTER_FILE, add_adapter, check_lora_config, load_adapter, save_adapter
from trl_progrpo.families.loading import base_folder, changed_weight
from trl_progrpo.trainer_checks import check_gradients


PROMPTS = ["a red circle", "two blue squares"]


def stock(base):
    pipeline = DiffusionPipeline.from_pretrained(base, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weights_of(denoiser):
    """Full weights with adapters merged, by their plain names."""
    found = {}
    for name, module in denoiser.named_modules():
        if isinstance(module, torch.nn.Linear) and "lora_" not in name:
            layer = denoiser.get_submodule(name.removesuffix(".base_layer"))
            delta = sum((layer.get_delta_weight(a) for a in getattr(layer, "active_adapters", [])), torch.zeros(()))
            found[name.removesuffix(".base_layer")] = module.weight.detach() + delta.detach()
    return found


def read_without_header(base, path):
    """As ComfyUI and kohya's scripts do it: base + B A alpha / rank, where alpha is the rank if there is no `.alpha`."""
    found, tensors = weights_of(base), load_file(path)
    for key, up in tensors.items():
        if key.endswith(".lora_B.weight"):
            layer = key.removesuffix(".lora_B.weight")
            down = tensors[f"{layer}.lora_A.weight"]
            alpha = tensors.get(f"{layer}.alpha", torch.tensor(float(len(down))))
            found[layer.removeprefix("transformer.")] += up @ down * (alpha / len(down))
    return found


def trained(family, config, seed=0):
    add_adapter(family, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in family.denoiser.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 10
    return family


SCALES = {
    "the default": {"r": 32, "lora_alpha": 64},
    "a factor of a third": {"r": 3, "lora_alpha": 1},
    "rslora": {"r": 5, "lora_alpha": 7, "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 6, "alpha_pattern": {"to_q": 3}},
    "ranks of their own": {"r": 4, "lora_alpha": 8, "rank_pattern": {"to_q": 2, "to_v": 6}},
    "no factor": {"r": 4, "lora_alpha": 4},
}


class TestScales:
    @pytest.mark.parametrize("config", SCALES.values(), ids=SCALES)
    def test_every_loader_gets_the_same_strength(self, make_family, pipeline_path, tmp_path, config):
        family = trained(make_family(), LoraConfig(**config))
        save_adapter(family, str(tmp_path), to_resume=False)
        ours, path = weights_of(family.denoiser), tmp_path / ADAPTER_FILE
        from_folder, from_tensors = stock(pipeline_path), stock(pipeline_path)
        from_folder.load_lora_weights(tmp_path)
        from_tensors.load_lora_weights(load_file(path))
        readers = {
            "folder": weights_of(from_folder.transformer),
            "state dict": weights_of(from_tensors.transformer),
            "no header": read_without_header(stock(pipeline_path).transformer, path),
        }
        for name, theirs in readers.items():
            assert max((ours[layer] - theirs[layer]).abs().max() for layer in ours) < 1e-5, name
        assert not [file for file in tmp_path.iterdir() if "unscaled" in file.name]

    @pytest.mark.parametrize("config", SCALES.values(), ids=SCALES)
    def test_resuming_reads_it_bit_for_bit(self, make_family, tmp_path, config):
        family = trained(make_family(), LoraConfig(**config))
        save_adapter(family, str(tmp_path))
        other = trained(make_family(), LoraConfig(**config), seed=1)
        load_adapter(other, str(tmp_path / ADAPTER_FILE))
        for one, two in zip(family.denoiser.parameters(), other.denoiser.parameters(), strict=True):
            assert torch.equal(one, two)

    @pytest.mark.parametrize("config", SCALES.values(), ids=SCALES)
    def test_a_second_file_that_is_left_over_is_not_read(self, make_family, tmp_path, config):
        save_adapter(trained(make_family(), LoraConfig(**config)), str(tmp_path))
        # As written at the end of a run, or by whoever puts other weights there.
        family = trained(make_family(), LoraConfig(**config), seed=1)
        save_adapter(family, str(tmp_path), to_resume=False)
        other = trained(make_family(), LoraConfig(**config), seed=2)
        load_adapter(other, str(tmp_path / ADAPTER_FILE))
        for one, two in zip(family.denoiser.parameters(), other.denoiser.parameters(), strict=True):
            assert torch.allclose(one, two, atol=1e-6)

    def test_a_file_of_an_earlier_version_is_read(self, make_family, tmp_path):
        family = trained(make_family(), LoraConfig(r=4, lora_alpha=8))
        save_adapter(family, str(tmp_path))
        with safe_open(tmp_path / ADAPTER_FILE, "pt") as file:
            header = json.loads(file.metadata()[LORA_ADAPTER_METADATA_KEY])
        tensors = {k: t / 2 if "lora_B" in k else t for k, t in load_file(tmp_path / ADAPTER_FILE).items()}
        header = {LORA_ADAPTER_METADATA_KEY: json.dumps({**header, "transformer.lora_alpha": 8})}
        save_file(tensors, tmp_path / "old.safetensors", metadata=header)
        other = trained(make_family(), LoraConfig(r=4, lora_alpha=8), seed=1)
        load_adapter(other, str(tmp_path / "old.safetensors"))
        for one, two in zip(family.denoiser.parameters(), other.denoiser.parameters(), strict=True):
            assert torch.equal(one, two)

    @pytest.mark.parametrize("changed", [{"lora_alpha": 4}, {"use_rslora": True}, {"alpha_pattern": {"to_q": 2}}])
    def test_another_scale_is_refused_all_the_same(self, make_family, tmp_path, changed):
        save_adapter(trained(make_family(), LoraConfig(r=4, lora_alpha=8)), str(tmp_path))
        other = trained(make_family(), LoraConfig(**{"r": 4, "lora_alpha": 8, **changed}))
        with pytest.raises(ValueError, match=rf"`{next(iter(changed))}` of the LoRA config is .* use that again"):
            load_adapter(other, str(tmp_path / ADAPTER_FILE))


class TestConfigs:
    @pytest.mark.parametrize("kind", ["AdaLoraConfig", "own subclass"])
    def test_subclasses_are_refused(self, kind):
        own = type("MyLora", (LoraConfig,), {})
        config = own() if kind == "own subclass" else peft.AdaLoraConfig(total_step=10, target_modules=["to_q"])
        with pytest.raises(ValueError, match=r"`peft_config` is a \w+, which .* use a plain `peft.LoraConfig`"):
            check_lora_config(config)

    @pytest.mark.parametrize(
        "options",
        [
            {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"bias": "all"}, {"modules_to_save": ["proj_out"]},
            {"layer_replication": [[0, 1]]}, {"lora_bias": True}, {"target_parameters": ["w"]},
            {"alora_invocation_tokens": [1]},
        ],
    )  # fmt: skip
    def test_what_diffusers_could_not_load_is_refused(self, options):
        config = LoraConfig(target_modules=["to_q"])
        [(name, value)] = options.items()
        setattr(config, name, value)
        with pytest.raises(ValueError, match=rf"`{name}` of the LoRA config is .*; use "):
            check_lora_config(config)

    @pytest.mark.parametrize(
        "options",
        [
            {"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"to_q": 2}}, {"exclude_modules": ["to_v"]},
            {"layers_to_transform": [0], "layers_pattern": "transformer_blocks"}, {"init_lora_weights": "orthogonal"},
        ],
    )  # fmt: skip
    def test_what_is_taken_fits_a_fresh_stock_pipeline(self, make_family, pipeline_path, tmp_path, options):
        family = trained(make_family(), LoraConfig(r=4, lora_alpha=8, **options))
        save_adapter(family, str(tmp_path))
        pipeline = stock(pipeline_path)
        pipeline.load_lora_weights(tmp_path)
        call = {"prompt": PROMPTS, "num_inference_steps": 2, "height": 8, "width": 8, "max_sequence_length": 0}
        call |= {"guidance_scale": 1.0, "output_type": "pt"}
        images = [p(**call, generator=torch.Generator().manual_seed(0)).images for p in (family.pipeline, pipeline)]
        assert (images[0] - images[1]).abs().max() < 1e-5

    @pytest.mark.parametrize("options", [{"lora_alpha": 0}, {"alpha_pattern": {"to_q": 0}}])
    def test_a_scale_of_nothing_is_refused(self, options):
        with pytest.raises(ValueError, match=r"`lora_alpha` of the LoRA is 0, .* use another"):
            check_lora_config(LoraConfig(target_modules=["to_q"], **options))


class TestCompiled:
    @pytest.mark.parametrize("what", ["transformer", "block", "both"])
    def test_wrappers_leave_no_trace_in_the_adapter(self, make_trainer, make_pipeline, pipeline_path, tmp_path, what):
        pipeline = make_pipeline()
        if what in ("block", "both"):
            blocks = pipeline.transformer.transformer_blocks
            blocks[0] = torch.compile(blocks[0], backend="eager")
        if what in ("transformer", "both"):
            pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")
        with pytest.warns(UserWarning, match=r"the transformer of `model` was wrapped .* set `torch_compile`"):
            trainer = make_trainer(model=pipeline)
        trainer.save_model(str(tmp_path))
        other = stock(pipeline_path)
        other.load_lora_weights(tmp_path)
        assert not [key for key in load_file(tmp_path / ADAPTER_FILE) if "_orig_mod" in key]
        assert {p.device.type for p in other.transformer.parameters()} == {"cpu"}


class TestPipelines:
    def fused_projections(pipeline):
        pipeline.transformer.fuse_qkv_projections()

    def unfused_projections(pipeline):
        # Of SD, SDXL and SD3 the fused layers stay, and all weights would have some without a gradient.
        pipeline.transformer.fuse_qkv_projections()
        pipeline.transformer.unfuse_qkv_projections()

    def fused_lora(pipeline):
        pipeline.transformer.add_adapter(LoraConfig(target_modules=["to_q"]))
        pipeline.fuse_lora(["transformer"])
        pipeline.unload_lora_weights()

    def text_encoder(pipeline):
        pipeline.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj"]))

    def ip_adapter(pipeline):
        class SomeIPAdapterProcessor(torch.nn.Module):
            pass

        pipeline.transformer.transformer_blocks[0].attn.processor = SomeIPAdapterProcessor()

    def own_processor(pipeline):
        pipeline.transformer.transformer_blocks[0].attn.processor = torch.nn.Linear(2, 2)

    FAULTS = {
        "fused_projections": (fused_projections, "fused projections", "load the pipeline afresh"),
        "unfused_projections": (unfused_projections, "fused projections", "load the pipeline afresh"),
        "fused_lora": (fused_lora, "a fused LoRA", "save_pretrained"),
        "text_encoder": (text_encoder, "an adapter on its text_encoder", "unload_lora_weights"),
        "ip_adapter": (ip_adapter, "an IP-Adapter", "unload_ip_adapter"),
        "own_processor": (own_processor, "Linear in its attention", "load the pipeline afresh"),
    }

    @pytest.mark.parametrize("fault", FAULTS)
    def test_one_that_is_not_plain_is_refused_with_the_cure(self, make_trainer, make_pipeline, fault):
        change, what, cure = self.FAULTS[fault]
        pipeline = make_pipeline()
        change(pipeline)
        with pytest.raises(ValueError, match=rf"`model` is a pipeline with {what}.*{cure}"):
            make_trainer(model=pipeline)

    def test_the_advice_for_a_fused_lora_works(self, make_trainer, make_pipeline, tmp_path):
        pipeline = make_pipeline()
        TestPipelines.fused_lora(pipeline)
        pipeline.save_pretrained(tmp_path)
        assert make_trainer(model=str(tmp_path)).model_name == str(tmp_path)

    def test_all_weights_do_not_go_under_an_adapter(self, make_trainer, make_pipeline):
        pipeline = make_pipeline()
        pipeline.transformer.add_adapter(LoraConfig(target_modules=["to_q"]))
        with pytest.raises(ValueError, match=r"an adapter on its transformer.*save_pretrained"):
            make_trainer(model=pipeline, peft_config=None)


class TestTrainersOfOnePipeline:
    FAULTS = {
        "callbacks": {"callbacks": [3]},
        "preview_decoder": {"preview_decoder": "no/decoder/here"},
        "optimizers": {"optimizers": (torch.optim.AdamW([torch.zeros(1, requires_grad=True)]), None)},
        "half_done": {"peft_config": LoraConfig(target_modules=r".*(attn\.to_q|time_proj)")},
    }

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_constructor_that_fails_late_takes_its_adapter_off(self, make_trainer, make_pipeline, fault):
        pipeline = make_pipeline()
        names = [name for name, _ in pipeline.transformer.named_parameters()]
        with pytest.raises(Exception, match=r"."):
            make_trainer(model=pipeline, **self.FAULTS[fault])
        assert [name for name, _ in pipeline.transformer.named_parameters()] == names
        make_trainer(model=pipeline)

    def test_the_callers_own_adapter_stays(self, make_trainer, make_pipeline):
        pipeline = make_pipeline()
        pipeline.transformer.add_adapter(LoraConfig(target_modules=["to_q"]))
        with pytest.raises(ValueError, match=r"already carries the adapters \['default'\]"):
            make_trainer(model=pipeline)
        assert list(pipeline.transformer.peft_config) == ["default"]
        assert any("lora_" in name for name, _ in pipeline.transformer.named_parameters())

    def test_the_precision_of_an_earlier_trainer_is_not_that_of_the_next(self, make_trainer, make_pipeline):
        pipeline = make_pipeline()
        make_trainer(model=pipeline, max_steps=1, bf16=True).train()
        pipeline.unload_lora_weights()
        second, fresh = make_trainer(model=pipeline, max_steps=1), make_trainer(max_steps=1)
        second.train()
        fresh.train()
        for one, two in zip(second.model.parameters(), fresh.model.parameters(), strict=True):
            assert torch.equal(one, two)


class TestBase:
    """Pipelines that remember neither a LoRA nor anything else, but whose weights are not those of their base."""

    def fused(pipeline):
        pipeline.transformer.add_adapter(LoraConfig(target_modules=["to_q"], init_lora_weights=False))
        pipeline.transformer.fuse_lora()
        pipeline.transformer.unload_lora()

    def fused_encoder(pipeline):
        pipeline.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        for module in pipeline.text_encoder.modules():
            if hasattr(module, "merge"):
                module.merge()
        pipeline.text_encoder.delete_adapter("default")

    def other_weights(pipeline):
        pipeline.transformer.proj_out.weight.data += 0.1

    def textual_inversion(pipeline):
        pipeline.text_encoder.resize_token_embeddings(pipeline.text_encoder.config.vocab_size + 1)

    CHANGES = {
        "fused": (fused, "transformer"), "fused_encoder": (fused_encoder, "text_encoder"),
        "other_weights": (other_weights, "transformer"), "textual_inversion": (textual_inversion, "text_encoder"),
    }  # fmt: skip

    @pytest.mark.parametrize("change", CHANGES)
    def test_changed_weights_are_refused_and_the_advice_works(self, make_trainer, pipeline_path, tmp_path, change):
        pipeline = stock(pipeline_path)
        make, component = self.CHANGES[change]
        make(pipeline)
        with pytest.raises(ValueError, match=rf"weights of its {component} that are not those of .*save_pretrained"):
            make_trainer(model=pipeline)
        pipeline.save_pretrained(tmp_path)
        assert changed_weight(stock(tmp_path), component) is None

    def test_rounded_weights_are_those_of_the_base(self, pipeline_path):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            pipeline = DiffusionPipeline.from_pretrained(
                pipeline_path, dtype=dtype, text_encoder_3=None, tokenizer_3=None
            )
            for now in (dtype, torch.float32):
                pipeline.to(dtype=now)
                assert changed_weight(pipeline, "transformer") is None
                assert changed_weight(pipeline, "text_encoder") is None

    def test_one_made_in_memory_has_nothing_to_be_compared_with(self, make_pipeline):
        assert changed_weight(make_pipeline(), "transformer") is None

    def test_the_cache_of_the_hub_is_found(self, pipeline_path, tmp_path, monkeypatch):
        snapshot = tmp_path / "models--maker--base" / "snapshots" / "0123"
        shutil.copytree(pipeline_path, snapshot)
        pipeline = stock(snapshot)
        pipeline.register_to_config(_name_or_path="maker/base")
        assert base_folder(pipeline) == str(snapshot)
        pipeline.transformer.proj_out.weight.data += 1
        assert changed_weight(pipeline, "transformer") == "proj_out.weight"
        pipeline.register_to_config(_name_or_path="no such/name at all")
        assert base_folder(pipeline) is None


class TestChangedAfterwards:
    CHANGES = {
        "weighted": (lambda t: t.pipeline.set_adapters("default", 0.5), "another weight than 1"),
        "switched off": (lambda t: t.pipeline.disable_lora(), "is switched off .*enable_lora"),
        "fused": (lambda t: t.pipeline.fuse_lora(["transformer"]), "is fused into .*unfuse_lora"),
        "projections": (lambda t: t.model.fuse_qkv_projections(), "have no gradient"),
        "unfrozen": (lambda t: t.model.proj_out.requires_grad_(True), "'proj_out.weight' for one, .* not be saved"),
    }

    @pytest.mark.parametrize("change", CHANGES)
    def test_the_next_training_says_so(self, make_trainer, change):
        trainer = make_trainer(max_steps=1)
        trainer.train()
        make, told = self.CHANGES[change]
        make(trainer)
        with pytest.raises(ValueError, match=told):
            trainer.train()

    def test_what_is_saved_is_at_the_strength_of_the_training(self, make_trainer, tmp_path):
        trainer = make_trainer(max_steps=1)
        trainer.save_model(str(tmp_path / "one"))
        trainer.pipeline.set_adapters("default", 0.25)
        trainer.save_model(str(tmp_path / "two"))
        one, two = (load_file(tmp_path / name / ADAPTER_FILE) for name in ("one", "two"))
        assert all(torch.equal(one[key], two[key]) for key in one)


class TestOtherAdapters:
    @pytest.mark.parametrize("active", [["style"], ["default", "style"], ["default"]])
    def test_beside_the_trainers_own_they_are_refused(self, make_trainer, active):
        trainer = make_trainer(max_steps=1)
        trainer.model.add_adapter(LoraConfig(target_modules=["to_q"]), adapter_name="style")
        trainer.pipeline.set_adapters(active)
        with pytest.raises(ValueError, match=r"has the adapters \['style'\] .*delete_adapters\(\['style'\]\)"):
            trainer.train()
        trainer.pipeline.delete_adapters(["style"])
        trainer.pipeline.set_adapters("default")
        trainer.train()

    def test_one_that_is_taken_off_or_away_is_told(self, make_trainer, make_pipeline):
        trainer = make_trainer(max_steps=1)
        trainer.pipeline.unload_lora_weights()
        with pytest.raises(ValueError, match="'default' is not the active one"):
            trainer.train()
        trainer = make_trainer(max_steps=1)
        trainer.pipeline.transformer = make_pipeline().transformer
        with pytest.raises(ValueError, match=r"`pipeline.transformer` has been exchanged"):
            trainer.train()


class TestGradients:
    @pytest.mark.parametrize("peft_config", ["default", None])
    def test_a_layer_that_is_never_called_is_named(self, make_trainer, peft_config):
        trainer = make_trainer(max_steps=1, peft_config=peft_config)
        # After the check of the pipeline, so that only the first update can tell.
        trainer.model.fuse_qkv_projections()
        with pytest.raises(ValueError, match=r"trained tensors of the transformer have no gradient .*'\S+' for one"):
            trainer.train()

    def test_weights_that_a_family_knows_to_be_unused_may_have_none(self, make_family):
        family = trained(make_family(), LoraConfig(r=2))
        for name, parameter in family.denoiser.named_parameters():
            if parameter.requires_grad and ".to_q." not in name:
                parameter.grad = torch.zeros_like(parameter)
        with pytest.raises(ValueError, match="to_q"):
            check_gradients(family, None)
        family.unused_parameters = (r"transformer_blocks\.\d+\.attn\.to_q\.",)
        check_gradients(family, None)
        check_gradients(family, "DeepSpeed")

    def test_the_text_stream_of_qwens_last_block_is_known(self, monkeypatch):
        from pathlib import Path

        monkeypatch.syspath_prepend(str(Path(__file__).parent / "families"))
        from pipelines_qwen import make_qwen_image

        from trl_progrpo.families import family_class

        pipeline = make_qwen_image()
        family = family_class(pipeline)(pipeline)
        names = [name for name, _ in family.denoiser.named_parameters()]
        last = family.denoiser.config.num_layers - 1
        unused = [name for name in names if any(re.match(one, name) for one in family.unused_parameters)]
        assert len(unused) == 6
        assert all(name.startswith(f"transformer_blocks.{last}.") for name in unused)
