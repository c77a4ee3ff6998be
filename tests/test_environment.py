"""The block of a bug report names what a maintainer asks for first."""

import diffusers
import torch

from mmface.core.environment import describe_environment, package_versions


def test_versions_and_hardware_are_one_block():
    found = dict(line.split(maxsplit=1) for line in describe_environment().splitlines())
    assert found["diffusers"] == diffusers.__version__
    assert found["GPUs"] == str(torch.cuda.device_count())
    assert {"Python", "system", "CPU", "mmface"} <= found.keys()


def test_what_is_not_installed_has_a_dash(monkeypatch):
    requirements = ["torch>=2.9", "no-such-package[a]>=1; extra == 'x'"]
    monkeypatch.setattr("mmface.core.environment.requires", lambda _: requirements)
    assert package_versions()["no-such-package"] == "-"
    assert list(package_versions()) == ["mmface", "no-such-package", "torch"]
