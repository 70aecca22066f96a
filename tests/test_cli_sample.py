# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`sample` and what it shares with `score`: base model and adapter, of this model and of others."""

import json
import os

import pytest
import torch
from peft import LoraConfig

from trl_progrpo.cli.main import main


PROMPTS = ["a red circle", "a blue square above a red circle"]
SHAPES = ["sample", "--model_name_or_path", "shapes", "--num_inference_steps", "2", "--prompts", *PROMPTS]


def assert_one_sentence(capsys, *parts):
    """Standard error is one line that names the problem; standard output is empty."""
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert out == ""
    assert len(lines) == 1, err
    for part in parts:
        assert part in err


def write_adapter(pipeline, folder, targets=("to_q", "to_v"), scale=0.5, filename=None):
    """A LoRA with large random weights in diffusers' layout."""
    from peft.utils import get_peft_model_state_dict

    denoiser = pipeline.transformer
    denoiser.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights="gaussian", target_modules=list(targets)))
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, scale, generator=torch.Generator().manual_seed(1))
    state = get_peft_model_state_dict(denoiser)
    metadata = {"r": 2, "lora_alpha": 4, "target_modules": list(targets)}
    type(pipeline).save_lora_weights(
        folder, transformer_lora_layers=state, transformer_lora_adapter_metadata=metadata, weight_name=filename
    )
    return str(folder)


@pytest.fixture(scope="module")
def shapes_adapter(tmp_path_factory):
    from trl_progrpo.families import load_pipeline

    return write_adapter(load_pipeline("shapes"), tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def foreign_adapter(make_pipeline, tmp_path_factory):
    """Of the random pipeline, which is smaller."""
    return write_adapter(make_pipeline(), tmp_path_factory.mktemp("foreign"))


class TestGrid:
    def test_the_base_row_is_that_of_the_base(self, tmp_path, capsys, shapes_adapter):
        from PIL import Image

        for name, more in (("base", []), ("both", ["--adapter", shapes_adapter])):
            assert main([*SHAPES, *more, "--output", str(tmp_path / f"{name}.png")]) == 0
        assert capsys.readouterr().out.splitlines() == [str(tmp_path / "base.png"), str(tmp_path / "both.png")]
        base, both = (Image.open(tmp_path / f"{name}.png") for name in ("base", "both"))
        assert both.height > base.height

    def test_the_adapter_is_on_below_and_off_above(self, shapes_adapter):
        from types import SimpleNamespace

        from trl_progrpo.cli.generate import base_and_adapter, draw
        from trl_progrpo.families import load_pipeline

        call = {"num_inference_steps": 2, "guidance_scale": 1.0, "max_sequence_length": 0}
        args = SimpleNamespace(adapter=shapes_adapter, seed=3, batch_size=2)
        rows = base_and_adapter(load_pipeline("shapes"), PROMPTS, call, args)
        alone = draw(load_pipeline("shapes"), PROMPTS, call, 3, 1)
        stock = load_pipeline("shapes")
        stock.load_lora_weights(shapes_adapter)
        assert [image.tobytes() for image in rows["base"]] == [image.tobytes() for image in alone]
        adapted = draw(stock, PROMPTS, call, 3, 2)
        assert [image.tobytes() for image in rows["adapter"]] == [image.tobytes() for image in adapted]
        assert rows["adapter"][0].tobytes() != rows["base"][0].tobytes()

    def test_a_file_is_an_adapter_too(self, shapes_adapter, tmp_path):
        path = os.path.join(shapes_adapter, "pytorch_lora_weights.safetensors")
        assert main([*SHAPES, "--adapter", path, "--output", str(tmp_path / "grid.png")]) == 0


class TestMistakes:
    @pytest.mark.parametrize(
        ("adapter", "parts"),
        [
            (
                "foreign_adapter",
                ["has weights for 16 inputs and 16 outputs of 'transformer_blocks.0", "another model"],
            ),
            ("nobody/nothing", ["'nobody/nothing'", "could not be loaded"]),
        ],
    )
    def test_an_adapter_that_does_not_fit(self, adapter, parts, request, capsys, tmp_path):
        folder = request.getfixturevalue(adapter) if "/" not in adapter else adapter
        assert main([*SHAPES, "--adapter", folder, "--output", str(tmp_path / "grid.png")]) == 2
        assert_one_sentence(capsys, "`--adapter`", *parts)
        assert not (tmp_path / "grid.png").exists()

    def test_it_names_the_base_it_knows(self, foreign_adapter, capsys, tmp_path):
        from safetensors.torch import load_file, save_file

        file = "pytorch_lora_weights.safetensors"
        known = json.dumps({"transformer.base_model_name_or_path": "maker/base", "transformer.r": 2})
        save_file(load_file(os.path.join(foreign_adapter, file)), tmp_path / file, {"lora_adapter_metadata": known})
        assert main([*SHAPES, "--adapter", str(tmp_path), "--output", str(tmp_path / "grid.png")]) == 2
        assert_one_sentence(capsys, "give its own base, 'maker/base', as --model_name_or_path")

    def test_of_another_kind_of_network(self, capsys, tmp_path, shapes_adapter):
        """Diffusers would load nothing, and say so in a notice at most."""
        from safetensors.torch import load_file, save_file

        state = load_file(os.path.join(shapes_adapter, "pytorch_lora_weights.safetensors"))
        unet = {key.replace("transformer.", "unet.", 1): tensor for key, tensor in state.items()}
        save_file(unet, tmp_path / "pytorch_lora_weights.safetensors")
        assert main([*SHAPES, "--adapter", str(tmp_path), "--output", str(tmp_path / "grid.png")]) == 2
        assert_one_sentence(capsys, "has no weights for the transformer (only for unet)", "--model_name_or_path")

    def test_of_a_deeper_network(self, capsys, tmp_path, shapes_adapter):
        from safetensors.torch import load_file, save_file

        state = load_file(os.path.join(shapes_adapter, "pytorch_lora_weights.safetensors"))
        deeper = {key.replace("blocks.0.", "blocks.77.", 1): tensor for key, tensor in state.items()}
        save_file(deeper, tmp_path / "pytorch_lora_weights.safetensors")
        assert main([*SHAPES, "--adapter", str(tmp_path), "--output", str(tmp_path / "grid.png")]) == 2
        assert_one_sentence(capsys, "a layer 'transformer_blocks.77.", "that is not there")

    def test_a_damaged_file(self, capsys, tmp_path):
        (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"not a tensor")
        assert main([*SHAPES, "--adapter", str(tmp_path), "--output", str(tmp_path / "grid.png")]) == 2
        assert_one_sentence(
            capsys, "cannot be read (pytorch_lora_weights.safetensors: ", "give the folder of a LoRA run"
        )

    @pytest.mark.parametrize("output", ["file/grid.png", "folder"])
    def test_an_output_that_cannot_be_written(self, output, capsys, tmp_path):
        # Below a file, as folders without permission do not stop root.
        (tmp_path / "file").write_text("")
        (tmp_path / "folder").mkdir()
        assert main([*SHAPES, "--output", str(tmp_path / output)]) == 2
        assert_one_sentence(capsys, "`--output`", "cannot be written", "choose a file")


def test_a_negative_prompt_without_guidance_is_warned_of(tmp_path):
    with pytest.warns(
        UserWarning, match="`--negative_prompt` is set, but `--guidance_scale` is 1.*; raise --guidance"
    ):
        assert main([*SHAPES, "--negative_prompt", "ugly", "--output", str(tmp_path / "grid.png")]) == 0


def test_a_negative_prompt_goes_only_where_one_is_taken(tmp_path, capsys, monkeypatch):
    argv = [*SHAPES, "--negative_prompt", "a blue square", "--output", str(tmp_path / "grid.png")]
    assert main([*argv, "--guidance_scale", "3"]) == 0
    first = (tmp_path / "grid.png").read_bytes()
    assert main([*argv, "--guidance_scale", "3", "--negative_prompt", "a red circle"]) == 0
    assert (tmp_path / "grid.png").read_bytes() != first
    capsys.readouterr()
    from diffusers import StableDiffusion3Pipeline

    whole = StableDiffusion3Pipeline.__call__

    def without_negative(self, prompt=None, num_inference_steps=None, guidance_scale=None, **kwargs):
        return whole(
            self, prompt=prompt, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, **kwargs
        )

    monkeypatch.setattr(StableDiffusion3Pipeline, "__call__", without_negative)
    assert main(argv) == 2
    assert_one_sentence(capsys, "`--negative_prompt` is set, but a StableDiffusion3Pipeline takes none; leave it away")
