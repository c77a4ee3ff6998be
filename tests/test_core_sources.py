"""What a model's name means, and what is said of one that cannot be loaded."""

import subprocess
import sys

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

import mmface
from mmface.core.sources import UnusableModelError, builtin_pipelines, opened
from mmface.encoders import LatentCodec, TextEncoder
from mmface.encoders.face_parser import FaceParser


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


def opening(name, error=None, **options):
    with opened("net", name, **options) as source:
        if error:
            raise error
    return source


def test_a_folder_goes_before_a_builtin_name_and_a_hub_id(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    builtin = {"tiny": tmp_path / "assets" / "tiny"}
    assert opening("tiny", builtin=builtin) == str(builtin["tiny"])
    (tmp_path / "tiny").mkdir()
    assert opening("tiny", builtin=builtin) == "tiny"
    assert opening("owner/name") == "owner/name"
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert opening("owner/name") == "owner/name"


def test_a_missing_folder_does_not_exist(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "./runs/export", tmp_path / "export", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=f"The net {name} does not exist"):
            opening(name)
    with pytest.raises(FileNotFoundError, match="No built-in net is named 'big'; there are: tiny"):
        opening("big", builtin={"tiny": tmp_path})


def test_a_missing_network_names_the_download(cache):
    error = OSError("We couldn't connect\nto the hub")
    with pytest.raises(FileNotFoundError, match=r"does not exist as a folder.*reached.*hf d"):
        opening("owner/name", error)
    with pytest.raises(FileNotFoundError, match="hf download owner/name --include 'vae/"):
        opening("owner/name", error, parts="--include 'vae/*'")


def test_a_hub_that_is_off_is_not_asked(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    wanted = r"not in the cache and offline \(HF_HUB_OFFLINE\): hf download owner/name, or give"
    with pytest.raises(FileNotFoundError, match=wanted):
        opening("owner/name")
    (cache / "models--owner--name" / "snapshots" / "1234" / "config.json").mkdir(parents=True)
    assert opening("owner/name") == "owner/name"


def test_a_repository_that_is_not_there_is_said_to_be_so(cache):
    class RepositoryNotFoundError(OSError):
        pass

    error = OSError("is not a valid model identifier")
    error.__cause__ = RepositoryNotFoundError("404")
    with pytest.raises(FileNotFoundError, match="the hub has none of this name either"):
        opening("owner/name", error)


def test_what_is_there_and_cannot_be_loaded_is_one_line(cache, tmp_path):
    with pytest.raises(OSError, match=f"^The net {tmp_path} cannot be loaded: no weights in it$"):
        opening(tmp_path, LocalEntryNotFoundError("no weights\nin it"))


@pytest.mark.parametrize("error", [ValueError("odd\nclasses"), KeyError("odd"), TypeError("odd"),
                                   RuntimeError("odd"), ZeroDivisionError("odd")])  # fmt: skip
def test_whatever_a_loader_raises_is_one_line(cache, tmp_path, error):
    with pytest.raises(ValueError, match=rf"^The net {tmp_path} cannot be loaded: .*odd") as caught:
        opening(tmp_path, error)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^The net inner") as caught, opened("net", tmp_path):
        raise UnusableModelError("The net inner cannot be loaded: odd")


@pytest.mark.parametrize("load", [LatentCodec.from_pretrained, TextEncoder.from_pretrained,
                                  FaceParser.from_pretrained])  # fmt: skip
def test_encoders_say_what_is_missing(cache, monkeypatch, load):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"owner/name .*hf download owner/name"):
        load("owner/name")
    with pytest.raises(FileNotFoundError, match="no/such/folder does not exist"):
        load("no/such/folder")


def test_builtin_pipelines_have_names():
    assert mmface.builtin("tiny-flow") == builtin_pipelines()["tiny-flow"]


def test_finding_a_folder_imports_nothing_heavy():
    code = (
        "import sys, mmface.core.sources as s\n"
        "with s.opened('net', '.'): pass\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
