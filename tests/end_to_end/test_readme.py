"""The README's commands, run as they are written but on a few rows, and its example method, as it is written."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_exams
from backbones.tiny_clip import save_clip
from backbones.tiny_images import save_colours, save_encoder
from backbones.tiny_language import save_language
from commands import ROOT, clear_merged, results, succeed
from tiny_glue import save_glue, save_roberta

from twin_merging.config import merge_methods, sparsifiers

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if line.startswith("python run.py")
]
(EXAMPLE,) = (block for language, block in BLOCKS if language == "python" and ".register(" in block)
FEW = ("tasks.limit=24", "finetune.epochs=1", "evaluation.timing=4")
ELSEWHERE = (
    "paths.mirror",
    "experts.source",
)  # of RoBERTa: test_run_mirror.py and test_run_published_experts.py run them
SMALL = {
    "hidden_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 96,
}  # of rank 76 at least
LANGUAGE = [
    "backbone.pretrained=language",
    "paths.data=EXAMS",
    "tasks.names=[mmlu,gsm8k]",
    "tasks.parts=null",
    "finetune.epochs=1",
]
OF_IMAGES = ["backbone.pretrained=images", "paths.data=DIR", "tasks.names=[a,b]", "tasks.corrupt=0.05"]
QUICK = "merge_method=ties,dare_ties,regmean,tsv_merge,emr"  # hundreds of steps are no quicker on few rows
LOOKS = ("--help", "--cfg", "cache=")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def all_commands(
    data: Path, need_asset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Where the commands start: the example method, two tasks a and b below DIR, and an empty cache."""
    need_asset("minilm")
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_method.py").write_text(EXAMPLE)
    source = data / "text"
    for name, original in zip("ab", sorted(source.iterdir()), strict=False):
        shutil.copytree(original, folder / "DIR/text" / name)
    save_language(folder / "language", context=2048, words=tiny_exams.WORDS)
    tiny_exams.save_exams(folder / "EXAMS")
    save_colours(folder / "DIR")
    save_encoder(folder / "images", "dinov2")
    save_clip(folder / "clip")
    save_roberta(folder / "roberta", save_glue(folder / "DIR"), **SMALL)
    yield folder
    shutil.rmtree(folder)  # gigabytes


@pytest.fixture
def start_folder(all_commands: Path) -> Iterator[Path]:
    """The same for each command, without what the one before merged: all together it would be many gigabytes."""
    yield all_commands
    clear_merged(all_commands / "outputs/cache")


def has_experts(folder: Path) -> None:
    """``checkpoints/TASK`` as Hugging Face folders, taken from the cache of the commands before."""
    for record in (folder / "outputs/cache/expert").glob("*/expert.json"):
        task = re.search(r'"task": "(\w+)"', record.read_text()).group(1)  # type: ignore[union-attr]
        shutil.copytree(record.parent, folder / "checkpoints" / task, dirs_exist_ok=True)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.removeprefix("python run.py")[:60].strip())
def test_a_command_of_the_readme_runs(command: str, start_folder: Path):
    arguments = shlex.split(command)[2:]
    of_roberta = any(argument.startswith("+exp=glue_roberta") for argument in arguments)
    if of_roberta and any(argument.startswith(ELSEWHERE) for argument in arguments):
        arguments = [argument for argument in arguments if not argument.startswith("paths.mirror")] + ["--cfg", "job"]
    if any(look in argument for look in LOOKS for argument in arguments):
        succeed(*arguments, folder=start_folder)
        return
    if any("experts.source" in argument for argument in arguments):
        has_experts(start_folder)
    before = set(start_folder.rglob("results.json"))
    if any(argument.startswith("+exp=generative_") for argument in arguments):
        plain = ["finetune.quantize=none"] if "+exp=generative_qwen72b" in arguments else []  # bitsandbytes is an extra
        judged = len(arguments) == 1 or any(argument.startswith("evaluation=") for argument in arguments)
        judge = [] if judged else ["evaluation=native"]  # HELM takes longer, and judges the first of them
        succeed(*arguments, *LANGUAGE, *plain, *judge, folder=start_folder)
        assert set(start_folder.rglob("results.json")) > before
        return
    quick = [QUICK] if {"+exp=quickstart_methods", "+exp=vision_small", "+exp=vision_clip"} & {*arguments} else []
    if "+exp=vision_small" in arguments:  # whose rows are a large download
        quick += OF_IMAGES
    if "+exp=vision_clip" in arguments:
        given = "backbone.pretrained=null" in arguments  # the real architecture, which is slow
        quick = [
            *OF_IMAGES,
            *(["merge_method=pretrained"] if given else [QUICK.replace("regmean,", ""), "backbone.pretrained=clip"]),
        ]
        quick = [argument for argument in quick if not (given and argument == OF_IMAGES[0])] + [
            "finetune.task_epochs=null"
        ]
    if "+exp=quickstart_optuna" in arguments:
        quick = ["hydra.sweeper.n_trials=4"]
    if of_roberta:  # which comes from the hub
        quick = ["backbone.pretrained=roberta", "paths.data=DIR"]
    succeed(*arguments, *FEW, *quick, folder=start_folder)
    assert set(start_folder.rglob("results.json")) > before


def test_the_example_method_is_as_short_as_it_says_and_gives_scores(start_folder: Path):
    code = (start_folder / "my_method.py").read_text()
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    succeed("+exp=quickstart", "plugins=[my_method]", "merge_method=median", *FEW, folder=start_folder)
    assert ("median", "oracle") in results(start_folder)


def rows_below(heading: str) -> list[str]:
    """The rows of the table below a heading that begin with a name."""
    table = README.partition(f"{heading}\n")[2].partition("|---")[2].split("\n\n")[0]
    return [row for row in table.splitlines() if re.match(r"\| `\w+` \|", row)]


def listed(heading: str) -> set[str]:
    """The names in the first column of the table below a heading."""
    return {row.split("`")[1] for row in rows_below(heading)}


def test_the_tables_list_every_method_and_sparsifier():
    assert listed("## Methods") == set(merge_methods)
    assert listed("### Sparsifiers") == set(sparsifiers)
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("row", [row for heading in ("## Methods", "### Sparsifiers") for row in rows_below(heading)])
def test_the_options_that_a_table_names_exist(row: str):
    name, _, options = (cell.strip() for cell in row.strip("|").split("|")[:3])
    component = {**merge_methods, **sparsifiers}[name.strip("`")]
    fields = {field.name for field in dataclasses.fields(component.options)}
    named = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", options))
    assert set(named) <= fields | {"sparsifier", "router", "finetune"}  # groups
