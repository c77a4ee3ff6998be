"""Digests whose values stand in stores, recipes and journals: they never change."""

import pytest
import torch
from torch import nn

from mmface.core.files import (
    file_sha256,
    folder_sha256,
    model_sha256,
    values_sha256,
    weights_sha256,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "m.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / ".hidden").write_text("x")
    return tmp_path


def networks():
    whole, half = nn.Linear(2, 2), nn.Linear(2, 1).to(torch.bfloat16)
    whole.register_buffer("count", torch.tensor(3))
    with torch.no_grad():
        whole.weight.copy_(torch.arange(4.0).reshape(2, 2))
        whole.bias.fill_(0.5)
        half.weight.fill_(1.5)
        half.bias.fill_(-2)
    return whole, half


def test_the_digests_of_weights_are_the_stored_ones():
    assert [values_sha256(net.state_dict())[:16] for net in networks()] == [
        "27e657bb1fd2aef8",
        "51aa0cfe12d0d8a7",
    ]
    assert [weights_sha256(net.state_dict()) for net in networks()] == [
        "0686d8007dc991ab0267761e8b03ffdeb4f43635f15a3cf0e8b00a17e4135ad4",
        "bc7bce5cae1712e1d2bd7a6df1426b0f2f1089c07f0bb8098a23019d97012539",
    ]


def test_values_are_the_same_in_every_dtype_and_weights_are_not():
    _, half = networks()
    values, weights = values_sha256(half.state_dict()), weights_sha256(half.state_dict())
    half.float()
    assert values_sha256(half.state_dict()) == values
    assert weights_sha256(half.state_dict()) != weights


def test_the_digests_of_files_and_folders_are_the_stored_ones(folder):
    assert folder_sha256(folder) == (
        "55554f06054b802888f1521d104314ea821a592d37c35b03490fc1f00d613029"
    )
    assert model_sha256(folder) == (
        "2c3e213afc618ff7696d98d85d21d0b49aff499ca5811f056d7d96e768df07cf"
    )
    assert model_sha256(folder, ["a"]) == model_sha256(folder, ["a/m.safetensors"])
    assert model_sha256(folder, ["a"]) == (
        "095cf38ed1b6ab09f20f721e43d769512742acee690088108dd4ec608a988e7e"
    )
    assert file_sha256(folder / "notes.txt") == (
        "ab5aa97074c454a0632057e704220d9a6678fbf773a0a5806fc09b8173b07309"
    )


def test_a_changed_file_is_read_again(folder):
    path = folder / "notes.txt"
    before = file_sha256(path)
    path.write_text("other notes")
    assert file_sha256(path) != before
