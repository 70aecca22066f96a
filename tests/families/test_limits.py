# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a model cannot do, known when its family is made."""

import pytest
from pipelines import make_sd, make_sd3
from pipelines_flux import tiny_flux, tiny_flux2, tiny_flux2_klein
from pipelines_qwen import make_z_image

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.families import family_class


class TestNegativePrompts:
    @pytest.mark.parametrize(
        "pipeline", [tiny_flux, lambda: tiny_flux(False), tiny_flux2, lambda: tiny_flux2_klein(is_distilled=True)]
    )
    def test_of_models_that_ignore_them(self, tmp_path, pipeline):
        pipeline = pipeline()
        size = {"height": 32, "width": 32, "negative_prompt": "ugly"}
        with pytest.warns(UserWarning, match="`negative_prompt`"):
            args = ProGRPOConfig(str(tmp_path), use_cpu=True, **size)
        with pytest.raises(ValueError, match=r"`negative_prompt` is 'ugly', but .* ignores them; leave it unset\."):
            ProGRPOTrainer(pipeline, "jpeg_compressibility", args, ["a red circle"])


class TestSizes:
    @pytest.mark.parametrize("make", [make_sd3, make_z_image])
    def test_beyond_the_position_table(self, make):
        pipeline = make()
        family = family_class(pipeline)
        most = family(pipeline, height=16, width=16).max_size[0]
        assert family(pipeline, height=most, width=most).height == most
        for name in ("height", "width"):
            with pytest.raises(ValueError, match=f"`{name}` is .*, but the position table of .* use at most {most}"):
                family(pipeline, **{"height": 16, "width": 16, name: 2 * most})

    @pytest.mark.parametrize("make", [make_sd3, make_z_image])
    def test_are_those_of_the_network(self, make):
        """What is taken runs, and what is refused does not."""
        pipeline = make()
        most = family_class(pipeline)(pipeline, height=16, width=16).max_size[0]

        def draw(height):
            pipeline(prompt="a red circle", height=height, width=16, num_inference_steps=1, output_type="latent")

        pipeline.set_progress_bar_config(disable=True)
        draw(most)
        with pytest.raises((ValueError, IndexError, RuntimeError)):
            draw(2 * most)

    def test_of_models_that_compute_positions(self):
        pipeline = make_sd()
        assert family_class(pipeline)(pipeline, height=4096, width=4096).max_size is None
