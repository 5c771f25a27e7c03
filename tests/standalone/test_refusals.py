"""Bad input: one error that names key, found and expected; exit code 2; and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from merge_models import change, save, state

from twin_merging.config import merge_methods
from twin_merging.merging.method import kind_of
from twin_merging.standalone import run as run_module
from twin_merging.standalone import writing
from twin_merging.standalone.cli import main
from twin_merging.validation import STATIC_METHODS_EXCLUDED


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    for seed, name in enumerate(["base", "e1", "e2"]):
        save(folder / name, "bert", seed)
    return folder


@pytest.fixture
def folder(drawn, tmp_path) -> Path:
    """A base and two experts that merge."""
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def refused(folder, capsys):
    """Run the command with other arguments added, and check what every refusal has in common."""

    def check(*arguments: str, says: list[str], leave: tuple[str, ...] = ()) -> str:
        given = {
            "base": f"base={folder / 'base'}", "experts": f"experts=[{folder / 'e1'},{folder / 'e2'}]", "out": f"out={folder / 'out'}"
        }  # fmt: skip
        overridden = {argument.split("=")[0] for argument in arguments} | set(leave)
        before = sorted(folder.rglob("*"))
        assert main([*(text for key, text in given.items() if key not in overridden), *arguments]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        for words in says:
            assert words in message, message
        assert sorted(folder.rglob("*")) == before
        return message

    return check


def test_a_batch_norm_has_no_statistics_without_images(refused, folder):
    for name in ("base", "e1", "e2"):
        change(folder / name, lambda tensors: tensors.update({"norm.running_mean": torch.zeros(3)}))
    refused(says=["base: BatchNorm's running statistics are found by images", "run.py"])


@pytest.mark.parametrize("key", ["base", "experts", "out"])
def test_what_is_needed(refused, key):
    refused(says=[f"{key}: a value is needed"], leave=(key,))


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("merge_method=task_aritmetic", ["merge_method: unknown option", "nearest:  task_arithmetic"]),
        ("merge_method.scalin=1", ["merge_method.scalin: unknown key", "nearest:  scaling"]),
        ("merge_method.scaling=big", ["merge_method.scaling", "found:    big", "float: λ"]),
        ("merge_method.scaling=11", ["merge_method.scaling: out of range", "at most 10"]),
        ("merge_method.grid=[0.1,0.2]", ["merge_method.grid: there are no validation rows"]),
        ("parametres.exclude=[a]", ["parametres.exclude: unknown key", "nearest:  parameters"]),
        ("parameters.exclud=[a]", ["parameters.exclud: unknown key", "nearest:  exclude"]),
        ("parameters.exclude=['(']", ["parameters.exclude: not a regular expression"]),
        ("parameters.include=['nothing']", ["parameters: no parameter is left"]),
        ("seed=-1", ["seed: out of range"]),
        ("seed=one", ["seed", "found:    one"]),
        ("dtype=float33", ["dtype: not a valid choice", "nearest:  float32"]),
        ("max_shard_size=many", ["max_shard_size: not a size"]),
        ("max_shard_size=0GB", ["max_shard_size: not a size"]),
        ("vocabulary=bases", ["vocabulary: not a valid choice", "nearest:  base"]),
        ("adapter_rank=0", ["adapter_rank: out of range"]),
        ("adapter_rank=4", ["adapter_rank: the result is no adapter, since experts are full models"]),
        ("output=adapter", ["output: the result is no adapter"]),
        ("plugins=[no_such_module]", ["plugins: cannot import"]),
        ("sparsifier=svdd", ["sparsifier: unknown option", "nearest:  svd"]),
        ("experts=one", ["experts: experts are a list"]),
        ("merge", ["merge: this cannot be read as key=value"]),
        ("parameters.include=[", ["parameters.include: this value cannot be read"]),
        ("base=/no/such/folder", ["base: no such folder", "found:    /no/such/folder"]),
        ("experts=[/no/such/folder]", ["experts[0]: no such folder"]),
    ],
)  # fmt: skip
def test_arguments(refused, argument, says):
    refused(argument, says=says)


def test_two_sizes_of_one_sparsifier(refused):
    refused("merge_method=twin", "sparsifier.rank=2", "sparsifier.fraction=0.1", says=["sparsifier: at most one"])


@pytest.mark.parametrize("name", sorted(name for name in merge_methods if name != "twin"))
def test_a_method_works_or_says_which_ones_do(folder, capsys, name):
    code = main([f"base={folder / 'base'}", f"experts=[{folder / 'e1'},{folder / 'e2'}]", f"merge_method={name}", f"out={folder / 'out'}"])  # fmt: skip
    message = capsys.readouterr().err
    if name in STATIC_METHODS_EXCLUDED or kind_of(merge_methods[name].load()).needs is not None:
        assert code == 2
        assert "merge_method: this method needs" in message
        assert "task_arithmetic" in message
        assert "weight_averaging" in message
        assert not (folder / "out").exists()
    else:
        assert code == 0, message
        assert (folder / "out/model.safetensors").is_file()


def test_help_tells_which_methods_those_are(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.split("run.py's alone: ")[1].split(".")[0].split(", ")
    assert listed == sorted(
        name
        for name, component in merge_methods.items()
        if name != "twin" and (name in STATIC_METHODS_EXCLUDED or kind_of(component.load()).needs is not None)
    )


def test_out_that_holds_something(folder, capsys):
    (folder / "out").mkdir()
    command = [f"base={folder / 'base'}", f"experts=[{folder / 'e1'}]", f"out={folder / 'out'}"]
    assert main(command) == 0  # empty is as good as missing
    assert main(command) == 2
    assert "out: this exists already" in capsys.readouterr().err


def test_another_architecture(folder, refused):
    save(folder / "other", "llama", 0)
    refused(
        f"experts=[{folder / 'e1'},{folder / 'other'}]",
        says=["experts[1]: another model_type", "found:    llama", "expected: bert"],
    )


def test_another_number_of_heads(folder, refused):
    path = folder / "e2/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_attention_heads": 3}))
    refused(says=["experts[1]: another num_attention_heads", "found:    3 in"])


def test_another_shape(folder, refused):
    change(folder / "e2", lambda tensors: tensors.update({"classifier.weight": torch.ones(5, 12)}))
    refused(says=["experts[1]: classifier.weight: a tensor of the wrong shape", "[5, 12]", "[3, 12], as in the base"])


def test_a_missing_tensor(folder, refused):
    change(folder / "e1", lambda tensors: tensors.pop("bert.pooler.dense.weight"))
    refused(says=["experts[0]: bert.pooler.dense.weight: 1 of the base's tensors are missing"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("who", "label"), [("base", "base"), ("e2", "experts[1]")])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_numbers_that_are_none(folder, refused, value, who, label, method):
    def spoil(tensors):
        tensors["bert.encoder.layer.1.output.dense.weight"][3, 4] = value

    change(folder / who, spoil)
    refused(
        f"merge_method={method}",
        says=[f"{label}: bert.encoder.layer.1.output.dense.weight: a tensor holds NaN", "1 of 240"],
    )


def test_numbers_that_are_none_where_nothing_merges(folder, refused):
    change(folder / "base", lambda tensors: tensors.update({"classifier.bias": torch.tensor([1.0, float("nan"), 1e9])}))
    refused("parameters.exclude=['classifier.*']", says=["base: classifier.bias: a tensor holds NaN", "1 of 3"])
    refused("parameters.exclude=['classifier.*']", "dtype=float16", says=["base: classifier.bias", "2 of 3"])


def test_a_sum_that_the_dtype_cannot_hold(folder, refused):
    def enlarge(tensors):
        tensors["classifier.weight"] *= 1e6

    change(folder / "e1", enlarge)
    refused("dtype=float16", says=["merge_method=task_arithmetic: classifier.weight: a tensor holds NaN or infinity"])


@pytest.mark.parametrize("who", ["base", "e1"])
def test_a_damaged_file(folder, refused, who):
    path = folder / who / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(says=["a damaged safetensors file", str(path)])


def test_a_folder_without_weights_or_configuration(folder, refused):
    (folder / "e1/model.safetensors").unlink()
    refused(says=["no safetensors checkpoint", "pickled weights are not read"])
    (folder / "e1/config.json").unlink()
    refused(says=["experts[0]: no model in this folder"])


def test_a_configuration_that_cannot_be_read(folder, refused):
    (folder / "e1/config.json").write_text("{")
    refused(says=[str(folder / "e1/config.json"), "cannot be read"])


def test_quantized_weights(folder, refused):
    path = folder / "e1/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    refused(says=["experts[0]: quantized weights", "found:    gptq"])


def test_an_adapter_as_base(folder, refused):
    (folder / "e1/adapter_config.json").write_text("{}")
    shutil.copy(folder / "e1/model.safetensors", folder / "e1/adapter_model.safetensors")
    refused(f"base={folder / 'e1'}", f"experts=[{folder / 'e2'}]", says=["base: an adapter is no base"])


def test_a_disk_that_is_too_small(folder, refused, monkeypatch):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    refused(says=["out: not enough disk space", "MB free at"])


def test_what_lies_there_already_needs_no_more_room(folder, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    command = [f"base={folder / 'base'}", f"experts=[{folder / 'e1'}]", f"out={folder / 'out'}"]
    monkeypatch.setattr(run_module, "write_card", interrupt)
    assert main(command) == 130
    monkeypatch.undo()
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    assert main(command) == 0


def test_a_disk_that_fills_up_on_the_way(folder, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module, "write_card", full)
    command = [f"base={folder / 'base'}", f"experts=[{folder / 'e1'}]", f"out={folder / 'out'}"]
    assert main(command) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not (folder / "out").exists()
    monkeypatch.undo()
    assert main(command) == 0
    assert not (folder / "out.unfinished").exists()


def test_an_interrupt_keeps_what_is_finished(folder, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "write_card", interrupt)
    command = [f"base={folder / 'base'}", f"experts=[{folder / 'e1'}]", f"out={folder / 'out'}"]
    assert main(command) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert (folder / "out.unfinished/model.safetensors").is_file()


def test_inputs_that_changed_since_a_kill_are_read_anew(folder, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    command = [
        f"base={folder / 'base'}",
        f"experts=[{folder / 'e1'}]",
        "merge_method=weight_averaging",
        f"out={folder / 'out'}",
    ]
    monkeypatch.setattr(run_module, "write_card", interrupt)
    assert main(command) == 130
    monkeypatch.undo()
    change(folder / "e1", lambda tensors: tensors.update({"classifier.bias": torch.tensor([1.0, 2.0, 3.0])}))
    assert main(command) == 0
    assert torch.equal(state(folder / "out")["classifier.bias"], torch.tensor([1.0, 2.0, 3.0]))
