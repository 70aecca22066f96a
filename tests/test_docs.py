# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What the documentation says is true: its code runs, its links lead somewhere, its reference is current."""

import ast
import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest
import torch
import yaml

import trl_progrpo
from trl_progrpo.families import FAMILIES
from trl_progrpo.policies import POLICIES
from trl_progrpo.pruning import PRUNING_RULES


ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("benchmarks/*.md")]
)
PAGE_IDS = [str(page.relative_to(ROOT)) for page in PAGES]
RUN = [
    "CONTRIBUTING.md", "docs/data.md", "docs/from_ddpo.md", "docs/from_flow_grpo.md", "docs/index.md",
    "docs/method.md", "docs/quickstart.md",
]  # fmt: skip

BLOCK = re.compile(
    r"(?P<marker><!-- not run: [^\n]+ -->\n)?^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```$)?",
    re.M | re.S,
)


def blocks(page: Path) -> list[re.Match]:
    return list(BLOCK.finditer(page.read_text(encoding="utf-8")))


def source(page: Path, block: re.Match) -> str:
    """The block's code, padded so that tracebacks show the line of the page."""
    return "\n" * page.read_text(encoding="utf-8").count("\n", 0, block.start("code")) + block["code"]


def run_page(page: Path, namespace: dict) -> None:
    """Runs the blocks of a page in one namespace; a text block behind one is what it must print. Tests in it are called."""
    for block in blocks(page):
        if block["marker"]:
            continue
        printed, known = io.StringIO(), set(namespace)
        with contextlib.redirect_stdout(printed):
            exec(compile(source(page, block), str(page.relative_to(ROOT)), "exec"), namespace)
            for name in set(namespace) - known:
                if name.startswith("test_"):
                    namespace[name]()
        if block["output"] is not None:
            assert [line.rstrip() for line in printed.getvalue().splitlines()] == block["output"].splitlines()


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_python_compiles(page):
    for block in blocks(page):
        ast.parse(source(page, block), str(page))


def test_every_python_block_is_found():
    for page in PAGES:
        # Indented blocks, in lists, would escape the pattern.
        assert len(blocks(page)) == page.read_text(encoding="utf-8").count("```python"), page


@pytest.mark.parametrize("name", RUN)
def test_python_runs(name, small_runs):
    torch.manual_seed(0)
    run_page(ROOT / name, {"__name__": "documentation"})


def test_other_pages_have_no_code_that_is_not_run():
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        assert name in (*RUN, "docs/families.md", "README.md") or not [b for b in blocks(page) if not b["marker"]], (
            page
        )


def test_recipe_family(restored_registries):
    """The family in docs/families.md keeps every promise of a family."""
    from trl_progrpo.testing import check_family

    (block,) = [b for b in blocks(ROOT / "docs" / "families.md") if "class AuraFlowFamily" in b["code"]]
    FAMILIES._objects.pop("AuraFlowPipeline", None)
    exec(block["code"], {"__name__": "documentation"})
    report = check_family(
        make_tiny_aura_flow(), heights_widths=[(16, 16)], num_inference_steps=[2], guidance_scales=[5.0]
    )
    assert report.family == "AuraFlowFamily"
    assert report.log_prob_difference == 0


def make_tiny_aura_flow():
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, AutoencoderKL, FlowMatchEulerDiscreteScheduler
    from transformers import CLIPTokenizer, UMT5Config, UMT5EncoderModel

    from trl_progrpo.tiny import model_path

    tokenizer = CLIPTokenizer.from_pretrained(model_path() / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        )
        transformer = AuraFlowTransformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pos_embed_max_size=64,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            latent_channels=4,
        )
    with torch.no_grad():
        # Random weights are small, and then so is what a prompt or an adapter changes.
        for parameter in (*transformer.parameters(), *text_encoder.parameters()):
            parameter.mul_(2)
    pipeline = AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_config_reference_is_current():
    path = ROOT / "docs/generate_config_reference.py"
    spec = importlib.util.spec_from_file_location("generate_config_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text(encoding="utf-8") == module.reference(), f"run `python {path.relative_to(ROOT)}`"
    for name in trl_progrpo.ProGRPOConfig.__annotations__:
        assert f"**`{name}`**" in module.reference()


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.is_relative_to(ROOT), target
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_no_paths_of_a_machine(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.:/])/(?:home|root|Users|tmp|work|mnt|opt|usr|var)/", text)


def test_commands_in_the_documentation_exist():
    """Every flag of a documented `trl-progrpo` command is one that its parser knows."""
    from trl_progrpo.cli import plan, report, reward_server, sample, score
    from trl_progrpo.cli.arguments import TrainParser
    from trl_progrpo.cli.launch import launch_options
    from trl_progrpo.cli.main import COMMANDS

    flags = {"train": {*TrainParser()._option_string_actions, *launch_options()}}
    for part in (plan, report, reward_server, sample, score):
        name = part.__name__.split(".")[-1].replace("_", "-")
        flags[name] = set(part._parser()._option_string_actions)
    found = 0
    for page in PAGES:
        for command, rest in re.findall(r"trl-progrpo (\w[\w-]*)((?: [^\n`|]*)?)", page.read_text(encoding="utf-8")):
            assert command in COMMANDS, (page, command)
            for flag in re.findall(r"--\w+", rest):
                found += 1
                assert flag in flags[command], (page, flag)
    assert found > 5


def test_the_readme_runs_with_a_tiny_pipeline_of_the_same_class(tmp_path, monkeypatch):
    """Its model, its preview decoder and its reward by others that need no download; all else as it stands."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "families"))
    from pipelines import make_sd3

    from trl_progrpo.tiny import preview_decoder_path

    monkeypatch.chdir(tmp_path)
    make_sd3().save_pretrained("tiny")
    Path("prompts.txt").write_text("a red circle\ntwo blue squares\n")
    instead = {
        '"stabilityai/stable-diffusion-3.5-medium"': '"tiny"',
        '"madebyollin/taesd3"': repr(str(preview_decoder_path())),
        '"pickscore"': '"jpeg_compressibility"',
        "bf16=True": 'use_cpu=True, report_to="none"',
        "max_steps=1000": "max_steps=1",
    }
    code = "\n".join(block["code"] for block in blocks(ROOT / "README.md"))
    for name, other in instead.items():
        assert name in code
        code = code.replace(name, other)
    namespace = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert len(namespace["warmth"](["x"], [namespace["image"]])) == 1
    assert Path("sd35-pickscore", "pytorch_lora_weights.safetensors").is_file()


def test_names_in_the_documentation_exist():
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/method.md"))
    for registry in (POLICIES, PRUNING_RULES):
        for name in registry.registered():
            assert f"`{name}`" in text, name


def yaml_blocks():
    for page in PAGES:
        for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
            yield pytest.param(block, id=f"{page.name}-{block.split(':')[0]}")


@pytest.mark.parametrize("block", yaml_blocks())
def test_yaml_is_a_configuration(block, tmp_path):
    """Every documented part of a file for `--config` is one that `train` takes."""
    from trl_progrpo.cli.arguments import TrainParser

    config = yaml.safe_load(block)
    needed = {"model_name_or_path": "shapes", "reward_funcs": ["shapes"], "dataset_name": "shapes"}
    if "datasets" in config:
        del needed["dataset_name"]
    elsewhere = {"use_cpu": True, "report_to": "none", "output_dir": str(tmp_path)}
    TrainParser().parse([], {**needed, **config, **elsewhere}, "docs.yaml")


def test_the_readme_names_every_page():
    listed = (ROOT / "README.md").read_text(encoding="utf-8").split("## Documentation")[1]
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert page.name == "index.md" or f"(docs/{page.name})" in listed, page.name


def explained_metrics() -> set[str]:
    """Names in the first column of docs/metrics.md; `/max` stands for the name before it with another end."""
    names: list[str] = []
    for cell in re.findall(r"^\| (`.*?) \|", (ROOT / "docs/metrics.md").read_text(encoding="utf-8"), re.M):
        for name in re.findall(r"`([^`]+)`", cell):
            names.append(names[-1].rpartition("/")[0] + name if name.startswith("/") else name)
    return set(names)


def test_every_number_of_a_log_is_explained(make_trainer):
    trainer = make_trainer(
        max_steps=2, beta=0.1, audit_fraction=1.0, rollout_waves=2, on_reward_error="skip", num_iterations=2,
        eval_dataset=["a red circle"],
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    logged = {key for entry in trainer.state.log_history for key in entry if key != "step"}
    for pattern, name in (
        (r"step_\d+", "step_{i}"),
        (r"rewards/redness", "rewards/{name}"),
        (r"time/.*", "time/{phase}"),
    ):
        logged = {re.sub(pattern, name, key) for key in logged}
    logged = {re.sub(r"reward_errors/.*", "reward_errors/{kind}", key) for key in logged}
    assert {"kl", "audit/step_{i}/rank_corr", "eval_reward", "reward_errors/{kind}"} <= logged
    assert sorted(logged - explained_metrics()) == []
