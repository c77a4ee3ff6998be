"""The nodes keep ComfyUI's contract, and the workflow is one of them."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE

from mmface import comfyui
from mmface.comfyui.nodes import (
    MMFaceAdherence,
    MMFaceLoader,
    MMFaceMaskPainter,
    MMFaceSampler,
    images_of,
    pictures_of,
)
from mmface.conditions import LABEL_INDEX, colorize, load_mask

NODES = comfyui.NODE_CLASS_MAPPINGS
KNOWN = {"IMAGE", "MASK", "STRING", "INT", "FLOAT", "MMFACE_PIPELINE"}


@pytest.mark.parametrize("node", NODES.values())
def test_a_node_keeps_the_contract(node):
    inputs = node.INPUT_TYPES()
    assert set(inputs) <= {"required", "optional", "hidden"}
    names = [name for group in inputs.values() for name in group]
    for group in inputs.values():
        for kind, *options in group.values():
            assert kind in KNOWN if isinstance(kind, str) else all(isinstance(x, str) for x in kind)
            assert all(isinstance(option, dict) for option in options)
    function = getattr(node(), node.FUNCTION)
    parameters = inspect.signature(function).parameters
    assert list(parameters) == names
    optional = {name for name, one in parameters.items() if one.default is not one.empty}
    assert optional == set(inputs.get("optional", {}))
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    assert set(node.RETURN_TYPES) <= KNOWN
    assert node.CATEGORY == "mmface"
    assert set(comfyui.NODE_DISPLAY_NAME_MAPPINGS) == set(NODES)


def test_links_of_the_workflow_join_equal_types():
    text = (Path(comfyui.__file__).parent / "workflow.json").read_text()
    graph = json.loads(text)
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert {node["type"] for node in nodes.values()} - set(NODES) == {"LoadImage", "PreviewImage"}
    for number, start, slot, end, place, kind in graph["links"]:
        output, entry = nodes[start]["outputs"][slot], nodes[end]["inputs"][place]
        assert output["type"] == entry["type"] == kind
        assert number in output["links"]
        assert entry["link"] == number
    for node in nodes.values():
        if node["type"] not in NODES:
            continue
        made: Any = NODES[node["type"]]
        inputs, kinds = made.INPUT_TYPES(), []
        asked = {name: one for group in inputs.values() for name, one in group.items()}
        sockets = {entry["name"]: entry["type"] for entry in node["inputs"]}
        linked = ("IMAGE", "MASK", "MMFACE_PIPELINE")
        assert sockets == {name: one[0] for name, one in asked.items() if one[0] in linked}
        for name, one in asked.items():
            if one[0] not in linked:
                kinds += [name, "control"] if name == "seed" else [name]
        assert len(node["widgets_values"]) == len(kinds)
        assert [each["type"] for each in node["outputs"]] == list(made.RETURN_TYPES)


def test_a_class_is_painted_where_the_mask_is(face_labels):
    mask = torch.zeros(2, 64, 64)
    mask[1, :8] = 1
    (alone,) = MMFaceMaskPainter().paint(mask, "hat")
    assert alone.shape == (2, 64, 64, 3)
    assert 0 <= float(alone.min()) <= float(alone.max()) <= 1
    (onto,) = MMFaceMaskPainter().paint(mask, "hat", images_of([colorize(face_labels)]))
    expected = face_labels.copy()
    expected[:8] = LABEL_INDEX["hat"]
    found = [load_mask(picture, (64, 64)).labels for picture in pictures_of(onto)]
    assert np.array_equal(found[0], face_labels)
    assert np.array_equal(found[1], expected)


@pytest.mark.slow
def test_faces_are_loaded_sampled_and_measured(tiny_pipeline_folder, face_mask, face_sketch):
    (pipeline,) = MMFaceLoader().load(str(tiny_pipeline_folder), "float32")
    mask = images_of([face_mask, face_mask[:, ::-1]])
    sketch = images_of([np.repeat(face_sketch[..., None], 3, axis=2)])
    (faces,) = MMFaceSampler().sample(pipeline, "a", "", 3, 2, 2.0, 2, mask, sketch)
    assert faces.shape == (4, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert faces.dtype == torch.float32
    assert 0 <= float(faces.min()) <= float(faces.max()) <= 1
    conditions: dict[str, Any] = {
        "mask": list(pictures_of(mask)),
        "sketch": pictures_of(sketch) * 2,
    }
    plain = pipeline(
        ["a", "a"],
        seed=3,
        num_inference_steps=2,
        guidance_scale=2.0,
        num_images_per_prompt=2,
        output_type="np",
        **conditions,
    )
    assert np.array_equal(faces.numpy(), np.asarray(plain.images))
    found = MMFaceAdherence().measure(faces, "tiny-parser", mask, sketch)
    score, report = found["result"]
    assert 0 <= score <= 1
    assert report.count("face ") == 4
    assert found["ui"] == {"text": [report]}
    with pytest.raises(ValueError, match="neither a mask nor a sketch"):
        MMFaceSampler().sample(pipeline, "a", "", 3, 2, 2.0, 1)
