"""An experiment from a mirror alone: what it was fetched from is gone, and no network is asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from commands import ROOT, refused, results, succeed
from tiny_glue import save_glue, save_roberta

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def mirror(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts/mirror.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_mirror_is_enough_and_what_it_lacks_is_named(tmp_path: Path):
    data = save_glue(tmp_path / "data", ("cola", "stsb", "rte"))
    model = save_roberta(tmp_path / "roberta", data, **SMALL)
    common = [
        "+exp=glue_roberta", f"backbone.pretrained={model}", "finetune.epochs=1", "tasks.limit=16", "sparsifier.rank=4",
        "backbone.max_length=32", "precision=fp32", "device=cpu",
    ]  # fmt: skip
    out = tmp_path / "mirror"
    made = mirror(*common, "tasks.names=[cola,stsb]", f"paths.data={data}", f"out={out}")
    assert made.returncode == 0, made.stderr
    shutil.rmtree(model)
    shutil.rmtree(data)
    used = [*common, f"paths.mirror={out}", "hydra.run.dir=run"]
    succeed(*used, "tasks.names=[cola,stsb]", folder=tmp_path)
    result = results(tmp_path / "run")["twin", "oracle"]
    assert list(result["tasks"]) == ["cola", "stsb"]
    says = ["paths.mirror", "rows glue/rte", "python scripts/mirror.py +exp=glue_roberta", f"out={out}"]
    outcome = refused(*used, "tasks.names=[cola,rte]", "hydra.run.dir=other", folder=tmp_path, says=says)
    assert "rows glue/cola" not in outcome.err
    assert not (tmp_path / "other").exists()
    assert mirror("verify", f"out={out}").returncode == 0


def test_a_hub_that_cannot_be_reached_is_an_error_of_one_kind(tmp_path: Path):
    made = mirror("+exp=glue_roberta", f"out={tmp_path}", "--list")
    assert made.returncode == 0
    assert "FacebookAI/roberta-base" in made.stdout
    assert "glue/mnli" in made.stdout
