# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Every script, notebook and configuration in examples/ runs, made small, and on tiny pipelines of the real classes."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from tiny_hub import MAKERS, SIZE

from trl_progrpo.cli.arguments import TrainParser
from trl_progrpo.cli.launch import split_launch
from trl_progrpo.cli.main import main


ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
RECIPES = sorted(EXAMPLES.glob("configs/*.yaml"))
ADAPTER = "pytorch_lora_weights.safetensors"

# A recipe on a tiny pipeline: what it says about model, policy, update and memory stays, sizes and downloads do not.
TINY = """
--height {size} --width {size} --num_inference_steps 4 --eval_num_inference_steps 2 --num_expansions 4 --prune_steps 1 2
--prune_sizes 3 2 --num_generations 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 1
--rollout_batch_size 4 --decode_batch_size 4 --preview_decoder none --lora_r 2 --max_sequence_length {tokens}
--reward_funcs jpeg_compressibility --eval_reward_funcs jpeg_incompressibility --test_split_size 2 --eval_samples 2
--max_steps 1 --logging_steps 1 --save_strategy no --eval_strategy no --num_validation_prompts 0 --no_plot --use_cpu
--report_to none --disable_tqdm true
"""


def load_script(name):
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(name, *argv, monkeypatch):
    monkeypatch.setattr("sys.argv", [name, *argv])
    load_script(name).main()


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"{n} {c} circle" for n in ("a", "two", "three") for c in ("red", "blue")))
    return str(path)


class TestScripts:
    def test_one_reward_and_another(self, monkeypatch, small_runs, capsys):
        run_script("train_shapes.py", "--max_steps", "1", "--output_dir", "out", monkeypatch=monkeypatch)
        assert "held-out reward" in capsys.readouterr().out
        assert Path("out", ADAPTER).is_file()

    def test_custom_reward(self, monkeypatch, small_runs, capsys):
        run_script("custom_reward.py", monkeypatch=monkeypatch)
        assert re.search(r"reward -?\d\.\d{3} -> -?\d\.\d{3}", capsys.readouterr().out)
        assert Path("outputs/custom-reward", ADAPTER).is_file()

    def test_several_rewards(self, monkeypatch, small_runs, capsys):
        run_script("several_rewards.py", monkeypatch=monkeypatch)
        told = capsys.readouterr().out
        for name in ("shapes", "jpeg_compressibility", "shapes_strict", "jpeg_incompressibility"):
            assert re.search(rf"^{name} .*->", told, re.M)

    def test_remote_reward(self, monkeypatch, small_runs):
        pytest.importorskip("fastapi")
        run_script("remote_reward.py", monkeypatch=monkeypatch)
        assert Path("outputs/remote-reward", ADAPTER).is_file()

    @pytest.mark.parametrize(
        "model", ["stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"]
    )
    def test_unet_with_ddim(self, model, monkeypatch, small_runs):
        run_script("unet_ddim.py", "--model", model, "--output_dir", "out", monkeypatch=monkeypatch)
        assert Path("out", ADAPTER).is_file()

    def test_notebook_and_its_adapter(self, monkeypatch, small_runs, capsys):
        """The cells run in their order, and what they save is what the sampling script loads."""
        namespace = {"__name__": "notebook"}
        for i, source in enumerate(cells("shapes.ipynb")):
            exec(compile(source, f"shapes.ipynb, cell {i}", "exec"), namespace)
        told = capsys.readouterr().out
        assert "rank correlation" in told
        assert told.count("±") == 2
        assert namespace["grid"].is_file()
        run_script("sample_adapter.py", "outputs/notebook", monkeypatch=monkeypatch)
        assert Path("before.png").read_bytes() != Path("after.png").read_bytes()

    def test_every_script_is_tested_and_short(self):
        tests = Path(__file__).read_text(encoding="utf-8")
        for path in EXAMPLES.glob("*.py"):
            source = path.read_text(encoding="utf-8")
            assert f'"{path.name}"' in tests
            assert len(source.splitlines()) < 60
            if path.name != "sample_adapter.py":
                assert "from trl_progrpo import ProGRPOConfig, ProGRPOTrainer\n" in source

    def test_the_table_names_every_file(self):
        page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
        for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb"), *RECIPES]:
            assert f"]({path.relative_to(EXAMPLES)})" in page, path.name


def cells(name):
    """Sources of the code cells of a notebook, which holds no outputs."""
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) >= (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for cell in code:
        ast.parse("".join(cell["source"]))
    return ["".join(cell["source"]) for cell in code]


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem != "shapes_demo"], ids=lambda path: path.stem)
class TestRecipes:
    def test_one_step_on_a_tiny_pipeline(self, path, prompts, tiny_model, tmp_path, capsys):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        flags = TINY.format(size=SIZE, tokens=SIZE).split()
        if "sde_window_size" in config:
            flags += ["--sde_window_size", "2"]
        model = tiny_model(config["model_name_or_path"])
        out = tmp_path / "out"
        argv = ["train", "--config", str(path), "--model_name_or_path", model, "--dataset_name", prompts]
        assert main([*argv, "--output_dir", str(out), *flags]) == 0, capsys.readouterr().err
        assert (out / ADAPTER).is_file()
        results = json.loads((out / "eval_results.json").read_text())
        assert "eval_rewards/jpeg_incompressibility/mean" in results["after"]

    def test_its_own_schedule(self, path, prompts, tiny_model, tmp_path, capsys):
        """`--dry_run` with the real sizes of the rollout, in as many processes as the page says."""
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        model = tiny_model(config["model_name_or_path"])
        many = tmp_path / "many.txt"
        many.write_text("\n".join(f"prompt {i}" for i in range(300)))
        argv = ["train", "--config", str(path), "--model_name_or_path", model, "--dataset_name", str(many)]
        argv += ["--height", str(SIZE), "--width", str(SIZE), "--preview_decoder", "none", "--use_cpu"]
        argv += ["--num_processes", "8", "--output_dir", str(tmp_path / "out"), "--dry_run"]
        assert main(argv) == 0, capsys.readouterr().err
        told = capsys.readouterr().out
        sizes = [config["num_expansions"], *config["prune_sizes"]]
        assert f"{' -> '.join(map(str, sizes))} (after step {config['prune_steps'][0]}" in told
        assert "on each of 8 processes" in told
        if path.stem == "sd35_medium":
            prompts_of_one = re.search(r"#   prompts +(\d+)", told)[1]
            assert 8 * int(prompts_of_one) == 96

    def test_the_page_says_what_the_file_says(self, path, prompts):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert config["model_name_or_path"] in MAKERS
        (row,) = [
            line
            for line in (ROOT / "docs/recipes.md").read_text(encoding="utf-8").splitlines()
            if line.startswith(f"| [{path.name}]")
        ]
        sizes = " -> ".join(map(str, [config["num_expansions"], *config["prune_sizes"]]))
        assert f"{sizes} after {', '.join(map(str, config['prune_steps']))}" in row
        assert f"| {config['num_inference_steps']}" in row
        assert f"| {config['guidance_scale']:g}" in row
        assert f"{config['height']} x {config['width']}" in row
        if "eval_num_inference_steps" in config:
            assert f"evaluated with {config['eval_num_inference_steps']}" in row


def test_commands_of_the_page_hold_whole_groups(tmp_path):
    """What the page overrides gives a valid configuration, not only known flags."""
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    commands = re.findall(r"^trl-progrpo train --config (\S+) (.*)$", page, re.M)
    assert len(commands) >= 4
    for file, flags in commands:
        config = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
        parser = TrainParser()
        _, own, config = split_launch(parser, flags.split(), config, file)
        training = parser.parse([*own, "--output_dir", str(tmp_path), "--use_cpu"], config, file)[2]
        assert training.geometry(1).num_prompts >= 1
