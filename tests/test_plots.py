# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import math
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from PIL import Image

from trl_progrpo import plots


def make_history(steps=40):
    history = [evaluation(0)]
    for step in range(1, steps + 1):
        history.append(
            {
                "step": step,
                "reward": 0.5 + 0.3 * step / steps,
                "reward_std": 0.2,
                "prune/step_5/reward_std_before": 0.1 + 0.002 * step,
                "prune/step_5/reward_std_after": 0.3,
                "prune/step_5/reward_std_random": 0.15,
                "prune/step_5/rank_corr": 0.7,
                "prune/step_10/reward_std_before": 0.2,
                "prune/step_10/reward_std_after": 0.25,
                "prune/step_10/reward_std_random": 0.19,
            }
        )
    return [*history, evaluation(steps)]


def evaluation(step, strict=0.25):
    return {
        "step": step,
        "eval_reward": 0.5,
        "eval_reward_stderr": 0.01,
        "eval_rewards/shapes/mean": 0.5,
        "eval_rewards/shapes/stderr": 0.01,
        "eval_rewards/shapes_strict/mean": strict,
        "eval_rewards/shapes_strict/stderr": 0.02,
    }


def assert_picture(path, width, height):
    """A PNG of at least this size that is not blank."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= width
        assert image.height >= height
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20


class TestRewardCurve:
    def test_writes_a_picture_and_its_folder(self, tmp_path):
        path = plots.reward_curve(make_history(), tmp_path / "new" / "curve.png")
        assert path == tmp_path / "new" / "curve.png"
        assert_picture(path, 900, 500)

    def test_rewards_on_other_scales_get_axes_of_their_own(self, tmp_path):
        shared = plots.reward_curve(make_history(), tmp_path / "shared.png")
        history = [{**e, "eval_rewards/shapes_strict/mean": 5.0} if "eval_reward" in e else e for e in make_history()]
        apart = plots.reward_curve(history, tmp_path / "apart.png")
        assert Image.open(apart).height > Image.open(shared).height

    def test_training_alone_evaluation_alone_and_a_single_point(self, tmp_path):
        training = [entry for entry in make_history() if "reward" in entry]
        assert_picture(plots.reward_curve(training, tmp_path / "a.png"), 900, 500)
        assert_picture(plots.reward_curve([{"step": 1, "reward": 3.0}], tmp_path / "b.png"), 900, 500)
        assert_picture(plots.reward_curve([evaluation(0)], tmp_path / "c.png"), 900, 500)

    @pytest.mark.parametrize("steps", [(0, 80), (0, 3), (0, 40, 80), (7,)])
    @pytest.mark.parametrize("width", [8.0, 3.7])
    def test_held_out_rewards_are_points_at_whole_steps(self, steps, width):
        figure = plots.draw_reward_curve([evaluation(step) for step in steps], width)
        [axis] = figure.axes
        lines = [line for line in axis.lines if len(line.get_xdata()) == len(steps)]
        assert len(lines) >= 2
        assert {line.get_linestyle() for line in lines} == {"None"}
        assert {tuple(line.get_xdata()) for line in lines} == {steps}
        figure.draw_without_rendering()
        assert all(float(tick).is_integer() for tick in axis.get_xticks())

    @pytest.mark.parametrize(
        "history", [[{"step": 1, "reward": 0.5}], make_history(1), make_history(3), make_history(2000)]
    )
    def test_no_step_is_a_fraction(self, history):
        figure = plots.draw_reward_curve(history)
        figure.draw_without_rendering()
        low, high = figure.axes[-1].get_xlim()
        ticks = [tick for tick in figure.axes[-1].get_xticks() if low <= tick <= high]
        assert ticks
        assert all(float(tick).is_integer() for tick in ticks)

    def test_names_that_are_long_stay_in_the_picture(self):
        name = "a_reward_of_somebody_with_a_very_long_name (and_an_evaluation_set)"
        history = [
            {**evaluation(0), f"eval_rewards/{name}/mean": 0.3},
            {**evaluation(5), f"eval_rewards/{name}/mean": 0.3},
        ]
        for width in (8.0, 3.7):
            figure = plots.draw_reward_curve(history, width)
            figure.draw_without_rendering()
            box = figure.legends[0].get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1

    def test_nothing_to_draw(self, tmp_path):
        assert plots.reward_curve([{"step": 1, "loss": 0.1}], tmp_path / "curve.png") is None
        assert not (tmp_path / "curve.png").exists()

    def test_the_only_reward_is_not_drawn_twice(self):
        entries = [evaluation(0), evaluation(5)]
        main, extra = plots.held_out_series(entries)
        assert (list(main), list(extra)) == (["held-out reward"], ["held-out, shapes_strict"])

    def test_every_evaluation_set_has_its_line(self, tmp_path):
        entries = [
            {key.replace("eval_", f"eval_{name}_"): value for key, value in evaluation(step).items()}
            for step in (0, 5)
            for name in ("birds", "cats")
        ]
        main, extra = plots.held_out_series(entries)
        assert list(main) == ["held-out reward, birds", "held-out reward, cats"]
        assert list(extra) == ["held-out, shapes_strict (birds)", "held-out, shapes_strict (cats)"]
        assert_picture(plots.reward_curve(entries, tmp_path / "sets.png"), 900, 500)

    def test_of_two_evaluations_at_a_step_the_first_counts(self):
        entries = [{"step": 5, "eval_reward": 0.1}, {"step": 5, "eval_reward": 0.2}, {"step": 0, "eval_reward": 0.0}]
        steps, values, errors = plots._series(entries, "eval_reward", "eval_reward_stderr")
        assert (steps, values) == ([0, 5], [0.0, 0.1])
        assert all(map(math.isnan, errors))

    def test_leaves_global_settings_alone(self, tmp_path):
        before = dict(matplotlib.rcParams)
        plots.reward_curve(make_history(4), tmp_path / "curve.png")
        assert dict(matplotlib.rcParams) == before


class TestPruneFunnel:
    def test_writes_a_picture(self, tmp_path):
        path = plots.prune_funnel(make_history(), tmp_path / "funnel.png", {5: (48, 24), 10: (24, 12)}, 10)
        assert_picture(path, 800, 600)

    def test_a_constant_reward_and_no_correlation(self, tmp_path):
        history = [{"step": 1, "prune/step_5/reward_std_before": 0.0, "prune/step_5/reward_std_after": 0.0}]
        assert_picture(plots.prune_funnel(history, tmp_path / "funnel.png"), 800, 400)

    def test_nothing_to_draw(self, tmp_path):
        assert plots.prune_funnel([{"step": 1, "reward": 0.1}], tmp_path / "funnel.png") is None

    def test_table_is_the_mean_over_the_run(self):
        first, second = plots.prune_table(make_history(3), {5: (48, 24)}, num_inference_steps=10)
        assert (first["step"], first["sizes"], first["post_hoc"]) == (5, (48, 24), False)
        assert first["reward_std_before"] == pytest.approx(0.104)
        assert (second["step"], second["sizes"], second["post_hoc"]) == (10, None, True)
        assert math.isnan(second["rank_corr"])

    @pytest.mark.parametrize(
        ("args", "expected"),
        [
            ({"num_expansions": 48, "prune_steps": [5, 7], "prune_sizes": [24, 12]}, {5: (48, 24), 7: (24, 12)}),
            ({"num_expansions": 48, "prune_steps": [5], "prune_sizes": [24]}, {5: (48, 24), 10: (24, 12)}),
            ({"num_expansions": 24, "prune_steps": None, "prune_sizes": None}, {10: (24, 12)}),
            ({"num_expansions": 12, "prune_steps": None, "prune_sizes": None}, {}),
        ],
    )
    def test_group_sizes(self, args, expected):
        args = SimpleNamespace(num_generations=12, num_inference_steps=10, **args)
        assert plots.prune_group_sizes(args) == expected


class TestTrajectoriesAlive:
    @pytest.mark.parametrize(
        ("started", "sizes", "num_steps"),
        [(48, {5: (48, 24), 7: (24, 12)}, 10), (24, {10: (24, 12)}, 10), (6, {0: (6, 4)}, 3), (16, {20: (16, 8)}, 50)],
    )
    def test_the_area_is_the_cost(self, started, sizes, num_steps):
        figure = plots.draw_trajectories_alive(started, sizes, num_steps)
        values, edges, _ = figure.axes[0].patches[-1].get_data()
        alive = [started] * num_steps
        for step, (_, after) in sizes.items():
            alive[step + 1 :] = [after] * len(alive[step + 1 :])
        assert sum(value * (end - start) for value, start, end in zip(values, edges, edges[1:])) == sum(alive)


class TestImageGrid:
    def test_small_images_are_enlarged_without_smoothing(self, tmp_path):
        images = torch.zeros(2, 3, 32, 32)
        images[:, 0, :, 16:] = 1.0
        path = plots.image_grid([images], ["only"], ["a caption", "another caption"], tmp_path / "grid.png")
        with Image.open(path) as image:
            colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
            assert image.width > 2 * 160
        assert (255, 0, 0) in colours
        # Interpolation between black and red would leave dark reds.
        assert not any(0 < r < 255 and g == b == 0 for r, g, b in colours)

    def test_tensors_and_pil_images_draw_the_same(self, tmp_path):
        images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        pil = [Image.fromarray((i.permute(1, 2, 0) * 255).round().byte().numpy()) for i in images]
        labels, prompts = ["before", "after"], ["a", "b", "c"]
        first = plots.image_grid([images, images], labels, prompts, tmp_path / "a.png")
        second = plots.image_grid([pil, pil], labels, prompts, tmp_path / "b.png")
        assert first.read_bytes() == second.read_bytes()

    def test_many_prompts_continue_below_and_large_images_shrink(self, tmp_path):
        wide = plots.image_grid([torch.rand(4, 3, 32, 32)], ["x"], list("abcd"), tmp_path / "wide.png")
        long = plots.image_grid([torch.rand(8, 3, 32, 32)], ["x"], list("abcdefgh"), tmp_path / "long.png")
        assert Image.open(wide).width == Image.open(long).width
        assert Image.open(long).height > 1.8 * Image.open(wide).height
        large = plots.image_grid([torch.rand(1, 3, 1024, 512)], ["x"], ["a"], tmp_path / "large.png")
        assert Image.open(large).height < 600

    def test_scores_are_written_and_nan_is_left_out(self, tmp_path):
        images = torch.zeros(1, 3, 32, 32)
        with_score = plots.image_grid([images], ["x"], ["a"], tmp_path / "a.png", scores=[[0.5]])
        without = plots.image_grid([images], ["x"], ["a"], tmp_path / "b.png", scores=[[math.nan]])
        assert Image.open(with_score).size == Image.open(without).size
        assert with_score.read_bytes() != without.read_bytes()

    def test_gains_are_green_and_losses_red_below_a_title(self):
        images = torch.zeros(2, 3, 32, 32)

        def colours(before, after, **kwargs):
            picture = plots.draw_image_grid(
                [images, images], ["before", "after"], ["a", "b"], [before, after], **kwargs
            )
            return {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in picture.getcolors(1 << 24)}, picture.height

        green, red = plots.SIGN_COLOURS["+"], plots.SIGN_COLOURS["-"]
        for before, after, expected in (
            ([0.5, 0.5], [0.75, 0.5], {green}), ([0.5, 0.5], [0.25, 0.501], {red}), ([0.5, 0.5], [0.75, 0.25], {green, red}),
            ([0.5, 0.5], [0.5, math.nan], set()), ([math.nan, 0.5], [0.9, 0.5], set()),
        ):  # fmt: skip
            assert colours(before, after)[0] & {green, red} == expected
        assert colours([0, 0], [1, 1], title="a mean\nand more")[1] == colours([0, 0], [1, 1])[1] + 2 * 20 + 14

    def test_captions_stay_within_their_column(self):
        font = plots.Lettering(15)
        text = "a very long caption about Donaudampfschifffahrtsgesellschaftskapitäne and more " * 4
        lines = plots._wrap(text, font, 160)
        assert len(lines) == 4
        assert lines[-1].endswith("…")
        assert max(map(font.getlength, lines)) <= 160
        assert plots._wrap("two words", font, 160) == ["two words"]
        assert plots._wrap("", font, 160) == [""]

    @pytest.mark.parametrize(
        ("rows", "labels", "prompts", "scores", "message"),
        [
            ([2, 2], ["a"], 2, None, "row_labels"),
            ([2, 1], ["a", "b"], 2, None, "`rows`"),
            ([2], ["a"], 2, [[0.5]], "`scores`"),
            ([], [], 2, None, "at least one"),
        ],
    )
    def test_refuses_what_does_not_fit(self, tmp_path, rows, labels, prompts, scores, message):
        images = [torch.zeros(n, 3, 32, 32) for n in rows]
        with pytest.raises(ValueError, match=message):
            plots.image_grid(images, labels, ["a"] * prompts, tmp_path / "grid.png", scores)
