from __future__ import annotations

import pytest
import torch

from twin_merging import checkpoints
from twin_merging.config import MlpRouter as MlpOptions
from twin_merging.errors import UserError
from twin_merging.routers.mlp import MlpRouter
from twin_merging.routers.stored import read_router
from twin_merging.routers.tfidf import TfidfRouter


@pytest.mark.parametrize(
    "router",
    [
        MlpRouter(MlpOptions(layer=2, temperature=0.5), 6, 3),
        MlpRouter(MlpOptions(token="last"), 6, 3),
        TfidfRouter(False, torch.rand(9), torch.randn(9, 3), torch.randn(3), 0.5),
    ],
    ids=["mlp", "mlp of last tokens", "tfidf"],
)
def test_a_file_gives_the_router_back(router, tmp_path):
    checkpoints.save(router.state_dict(), tmp_path / "router.safetensors")
    again = read_router(tmp_path / "router.safetensors")
    assert type(again) is type(router)
    assert not again.training
    assert again.state_dict().keys() == router.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in router.state_dict().items())


def test_a_file_without_the_kind_of_token_reads_the_mean(tmp_path):
    state = MlpRouter(MlpOptions(), 6, 3).state_dict()
    del state["reads_last"]
    checkpoints.save(state, tmp_path / "router.safetensors")
    assert read_router(tmp_path / "router.safetensors").token == "mean"


def test_another_file_is_refused(tmp_path):
    checkpoints.save({"classifier.weight": torch.zeros(2)}, tmp_path / "router.safetensors")
    with pytest.raises(UserError, match="not a router") as caught:
        read_router(tmp_path / "router.safetensors")
    assert caught.value.found == "classifier.weight"
