"""``python merge.py`` as a user runs it: real processes, kills, little memory, and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import ROOT, Outcome, finish, wait_until
from safetensors.torch import load_file, save_file

from twin_merging.checkpoints import INDEX, Checkpoint
from twin_merging.safetensors_format import Entry, header_of
from twin_merging.shards import split

PLUGIN = '''
import time
from dataclasses import dataclass

from twin_merging.config import merge_methods, option


@dataclass
class Largest:
    """θ₀ + the largest τ_t"""

    name: str = "largest"
    pause: float = option(0.0, "seconds that each tensor takes", low=0)


@merge_methods.register("largest", options=Largest)
def largest(base, deltas, options):
    time.sleep(options.pause)
    return base.add_(deltas.amax(0))
'''


def start(*arguments: object, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "merge.py"), *map(str, arguments)], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def merge(*arguments: object, folder: Path) -> Outcome:
    return finish(start(*arguments, folder=folder))


def small_models(folder: Path, tensors: int = 12) -> None:
    """A base and two experts of a few equal tensors, with a config of no real class."""
    for seed, name in enumerate(["base", "e1", "e2"]):
        generator = torch.Generator().manual_seed(seed)
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"model_type": "none"}')
        state = {f"layer.{number}": torch.randn(50, 50, generator=generator) for number in range(tensors)}
        save_file(state, folder / name / "model.safetensors", {"format": "pt"})
    (folder / "plugin_of_mine.py").write_text(PLUGIN)


def expected_largest(folder: Path) -> dict[str, torch.Tensor]:
    base, *experts = (load_file(folder / name / "model.safetensors") for name in ("base", "e1", "e2"))
    return {
        name: tensor + torch.stack([expert[name] - tensor for expert in experts]).amax(0)
        for name, tensor in base.items()
    }


def test_alone_it_says_how_it_is_used(tmp_path):
    outcome = merge(folder=tmp_path)
    assert outcome.code == 2
    assert "python merge.py base=MODEL experts=[MODEL,MODEL] out=DIR" in outcome.text


def test_help_comes_without_loading_torch(tmp_path):
    code = (
        "import sys; from twin_merging.standalone.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    )
    began = time.monotonic()
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    for word in ("task_arithmetic", "weight_averaging", "twin", "vocabulary", "adapter_rank", "parameters"):
        assert word in outcome.stdout
    assert time.monotonic() - began < 5  # far less where nothing else runs


def test_the_plain_way_loads_neither_hydra_nor_transformers(tmp_path):
    small_models(tmp_path)
    code = (
        "import sys; from twin_merging.standalone.cli import main\n"
        "assert main(['base=base', 'experts=[e1,e2]', 'out=out']) == 0\n"
        "heavy = {'transformers', 'peft', 'datasets', 'hydra', 'scipy', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    outcome = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert outcome.returncode == 0, outcome.stderr


def test_bad_input_is_exit_code_2_and_one_error(tmp_path):
    outcome = merge("base=base", "experts=[e1]", "out=out", "merge_method=task_arithmetik", folder=tmp_path)
    assert outcome.code == 2
    assert "Traceback" not in outcome.text
    assert outcome.err.startswith("error: merge_method: unknown option")
    assert "nearest:  task_arithmetic" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_killed_merge_goes_on_with_the_shards_that_are_finished(tmp_path):
    small_models(tmp_path)
    command = [
        "base=base",
        "experts=[e1,e2]",
        "plugins=[plugin_of_mine]",
        "merge_method=largest",
        "max_shard_size=20KB",
    ]
    process = start(*command, "merge_method.pause=0.4", "out=out", folder=tmp_path)
    unfinished = tmp_path / "out.unfinished"
    assert wait_until(lambda: len(list(unfinished.glob("model-*.safetensors"))) >= 3, process), finish(process).text
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in unfinished.glob("model-*.safetensors")}
    assert 3 <= len(kept) < 6
    outcome = merge(*command, "merge_method.pause=0.4", "out=out", folder=tmp_path)
    assert outcome.code == 0, outcome.text
    assert not unfinished.exists()
    for name, time_of_change in kept.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == time_of_change
    found = Checkpoint(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected_largest(tmp_path).items())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "README.md", INDEX, *json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"].values()
    }  # fmt: skip


def test_what_another_merge_left_is_not_gone_on_with(tmp_path):
    small_models(tmp_path)
    command = [
        "base=base",
        "experts=[e1,e2]",
        "plugins=[plugin_of_mine]",
        "merge_method=largest",
        "max_shard_size=20KB",
    ]
    process = start(*command, "merge_method.pause=3", "out=out", folder=tmp_path)
    assert wait_until(lambda: any((tmp_path / "out.unfinished").glob("model-*.safetensors")), process)
    other = merge(*command, "merge_method.pause=3", "out=out", folder=tmp_path)
    assert other.code == 2
    assert "another process writes there" in other.err
    process.send_signal(signal.SIGKILL)
    process.communicate()
    outcome = merge("base=base", "experts=[e1,e2]", "merge_method=weight_averaging", "max_shard_size=20KB", "out=out", folder=tmp_path)  # fmt: skip
    assert outcome.code == 0, outcome.text
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("e1", "e2"))
    for name, tensor in Checkpoint(tmp_path / "out").items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)


# --- memory -----------------------------------------------------------------------------------------------------------

SIDE, TENSORS, SHARD = 1024, 240, 64_000_000  # tensors of 4 MB; only those of the first and last are not zero
LIMITED = """
ROOM = 100_000_000
import os, resource, sys
from pathlib import Path
from safetensors.torch import load_file
import twin_merging.standalone.run
import twin_merging.standalone.twin
from twin_merging.config import merge_methods
from twin_merging.registry import load_plugins
from twin_merging.standalone.cli import main

load_plugins(["plugin_of_mine"])
methods = {text.partition(" ")[0]: text.split(" ")[1:] for text in sys.argv[2:]}
for name in methods:
    merge_methods[name].load()
data = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
limit = data + ROOM
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
size = sum(path.stat().st_size for path in Path("base").glob("*.safetensors"))
assert size > limit, f"the model of {size} bytes would fit into {limit}"
child = os.fork()
if not child:
    try:
        whole = [load_file(path) for path in sorted(Path("base").glob("*.safetensors"))]
    except Exception:
        os._exit(0)
    os._exit(1)
assert os.waitpid(child, 0)[1] == 0, "the limit does not keep a process from reading the model whole"
for name, more in methods.items():
    arguments = ["base=base", "experts=[e1,e2]", f"merge_method={name}", f"out={name}", f"max_shard_size={sys.argv[1]}"]
    assert main([*arguments, *more]) == 0, name
    for path in sorted(Path(name).rglob("model-*.safetensors"))[1:-1]:  # their zeros do take disk
        path.unlink()
"""


def sparse_model(folder: Path, seed: int) -> None:
    """A sharded model of a gigabyte that takes little of the disk, since most of its numbers are zeros never written."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "none"}')
    shards = split({f"w{number}": Entry(torch.float32, (SIDE, SIDE)) for number in range(TENSORS)}, SHARD)
    where = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, starts = header_of(shard)
        with (folder / file).open("wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + sum(entry.nbytes for entry in shard.values()))
            for name in shard:
                if int(name[1:]) in (0, TENSORS - 1):
                    stream.seek(starts[name])
                    stream.write(real(name, seed).view(torch.uint8).numpy().tobytes())
        where |= dict.fromkeys(shard, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def real(name: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + int(name[1:]))
    return torch.randn(SIDE, SIDE, generator=generator)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits are set and measured as on Linux")
def test_models_larger_than_the_memory_that_the_process_may_have(tmp_path):
    """Base, experts and result are larger, each by itself, than all data that the process is allowed, code included."""
    try:
        merge_under_a_limit(tmp_path)
    finally:
        for folder in tmp_path.iterdir():  # a gigabyte, of which nothing should stay
            shutil.rmtree(folder, ignore_errors=True)


def merge_under_a_limit(tmp_path: Path) -> None:
    for seed, name in enumerate(["base", "e1", "e2"]):
        sparse_model(tmp_path / name, seed)
    (tmp_path / "plugin_of_mine.py").write_text(PLUGIN)
    (tmp_path / "limited.py").write_text(LIMITED)
    methods = ["task_arithmetic", "ties", "largest"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(
        [sys.executable, "limited.py", "64MB", *methods, "twin sparsifier.rank=64"], cwd=tmp_path, env=environment, text=True,
        capture_output=True, check=False, timeout=200,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    found = {method: state(tmp_path / method) for method in methods}
    for name in ("w0", f"w{TENSORS - 1}", "w1"):
        states = [real(name, seed) if name != "w1" else torch.zeros(SIDE, SIDE) for seed in range(3)]
        base, deltas = states[0], torch.stack(states[1:]) - states[0]
        torch.testing.assert_close(found["task_arithmetic"][name], base + 0.3 * deltas.sum(0))
        assert torch.equal(found["largest"][name], base + deltas.amax(0))
        # few numbers of the whole vectors are not zero, so that the fifth that TIES keeps has all of them
        agree = (deltas * deltas.sum(0) > 0).float()
        elected = (deltas * agree).sum(0) / agree.sum(0).clamp_min(1)
        torch.testing.assert_close(found["ties"][name], base + elected)
    check_knowledge(tmp_path / "twin/exclusive.safetensors")


def check_knowledge(path: Path) -> None:
    """The factors of all matrices together are larger than the memory that was left to the process."""
    assert path.stat().st_size > 2 * 100_000_000
    stored = Checkpoint(path)
    assert len(stored) == 3 * TENSORS
    base, *experts = (real("w0", seed) for seed in range(3))
    shared = base + 0.3 * (experts[0] + experts[1] - 2 * base)
    for number, expert in enumerate(experts):
        U, S, V = (stored[f"w0.{field}"][number] for field in ("U", "S", "V"))
        exact = torch.linalg.svdvals(expert - shared)
        error = torch.linalg.norm(expert - shared - (U * S) @ V.mT)
        assert error <= 1.005 * exact[64:].norm()
