"""Agreement with masks and sketches: by hand, against torchmetrics, in other orders of classes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import agreement_of
from PIL import Image

import mmface
from mmface.conditions import LABELS, edge_agreement, flip_labels
from mmface.data.pictures import ManifestPictures
from mmface.encoders.face_parser import FaceParser
from mmface.evaluation.references import HeldOutPictures, References
from mmface.metrics.condition_agreement import (
    Masks,
    class_ious,
    confusion_matrices,
    edge_agreements,
    pooled_accuracy,
    pooled_mean_iou,
)
from mmface.rendered import render_face

PARSER = Path(mmface.__file__).parent / "assets" / "tiny-parser"


@pytest.fixture(scope="module")
def faces():
    return [render_face(1_000_000 + index, 64) for index in range(4)]


@pytest.fixture(scope="module")
def face_pictures(faces):
    return torch.stack([torch.from_numpy(face.image).permute(2, 0, 1) for face in faces])


def as_batch(*maps):
    return torch.from_numpy(np.stack(maps))


def test_mask_agreement_in_four_averagings_by_hand():
    truth = np.array([[0, 0, 1], [1, 2, 2]], np.uint8)
    parsed = np.array([[0, 1, 1], [1, 2, 0]], np.uint8)
    result = agreement_of(as_batch(parsed, truth), as_batch(truth, truth))
    first = np.array([1 / 3, 2 / 3, 1 / 2])
    assert result.accuracy == pytest.approx(100 * 10 / 12)
    assert result.mean_iou == pytest.approx(100 * (3 / 5 + 4 / 5 + 3 / 4) / 3)
    assert result.mean_iou_of_pictures == pytest.approx(100 * (first.mean() + 1) / 2)
    assert result.mean_iou_absent_zero == pytest.approx(100 * (first.sum() + 3) / 19 / 2)
    pair = as_batch(truth, truth), as_batch(parsed, truth)
    of_classes = class_ious(confusion_matrices(*pair).sum(0))
    np.testing.assert_allclose(of_classes[:3], [3 / 5, 4 / 5, 3 / 4])
    assert of_classes[3:].isnan().all()


def test_pixels_are_counted_beyond_what_float32_holds():
    table = torch.zeros(19, 19, dtype=torch.int64)
    table[0, 0], table[0, 1] = 2**33 + 1, 2**32 - 1
    wanted = 100 * (2**33 + 1) / (3 * 2**32)
    assert pooled_accuracy(table.flatten()[None].numpy())[0] == pytest.approx(wanted, rel=1e-15)


def test_a_perfect_mask_reaches_all_but_the_nineteen_class_mean(faces):
    masks = as_batch(*(face.labels for face in faces))
    result = agreement_of(masks, masks)
    assert result[:3] == pytest.approx((100, 100, 100))
    present = np.mean([len(np.unique(face.labels)) for face in faces])
    assert result.mean_iou_absent_zero == pytest.approx(100 * present / len(LABELS))


def test_a_mirrored_mask_agrees_only_with_swapped_sides(faces):
    labels = faces[0].labels
    mirrored = labels[:, ::-1].copy()
    swapped = mirrored.copy()
    for left, right in ((4, 5), (6, 7), (8, 9)):  # eyes, brows, ears
        swapped[mirrored == left], swapped[mirrored == right] = right, left
    own = agreement_of(as_batch(flip_labels(labels)), as_batch(swapped))
    assert own[:3] == pytest.approx((100, 100, 100))
    assert agreement_of(as_batch(mirrored), as_batch(swapped)).mean_iou < 80


BISENET = [0, 1, 6, 7, 4, 5, 3, 8, 9, 15, 2, 10, 11, 12, 17, 16, 18, 13, 14]
"""The class of CelebAMask-HQ that each of face-parsing.PyTorch's is."""


def test_masks_in_the_order_of_bisenet_agree_once_they_are_read_as_such(faces, tmp_path):
    truth = as_batch(*(face.labels for face in faces))
    ours_to_theirs = np.argsort(BISENET).astype(np.uint8)
    header = {"manifest": "mmface", "version": 1, "sketch_polarity": "dark_on_white", "made_by": {}}
    for name in ("bisenet", "celebamask_hq"):
        lines = [{**header, "label_format": name}]
        for index, face in enumerate(faces):
            files = {"image": face.image, "sketch": face.sketch}
            files["mask"] = ours_to_theirs[face.labels]
            for kind, pixels in files.items():
                Image.fromarray(pixels).save(tmp_path / f"{index}_{kind}.png")
            paths = {kind: f"{index}_{kind}.png" for kind in files}
            size = {"width": 64, "height": 64, "split": "test"}
            lines.append({"id": f"face/{index}", "captions": list(face.captions), **paths, **size})
        manifest = tmp_path / f"{name}.jsonl"
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
        references = References(ManifestPictures(manifest, 64, "test"), "mask")
        if name == "celebamask_hq":  # as which they would agree in less than half
            with pytest.raises(ValueError, match="in the order of the label format 'bisenet'"):
                [references.order(item, seed=0).condition for item in range(len(faces))]
            continue
        read = as_batch(*(references.order(item, seed=0).condition for item in range(len(faces))))
        assert agreement_of(read, truth)[:3] == pytest.approx((100, 100, 100))
    # And back: what a parser of that order sees, against masks of ours.
    seen = as_batch(*(np.array(BISENET, np.uint8)[ours_to_theirs[f.labels]] for f in faces))
    assert agreement_of(seen, truth).accuracy == 100


@pytest.mark.slow
def test_a_tables_cells_of_masks_are_the_metrics_four_averagings(faces, face_pictures):
    measure = Masks(PARSER)
    measure.load(torch.device("cpu"))
    references = References(HeldOutPictures(4, 64), "mask")
    orders = [references.order(item, seed=0) for item in range(4)]
    rows = [
        row for i in range(4) for row in measure.read(face_pictures[i : i + 1], orders[i : i + 1])
    ]
    intervals = measure.intervals(references.ids, rows)
    parser = FaceParser.from_pretrained(PARSER)
    parsed = as_batch(*parser([face.image for face in faces]))
    truth = as_batch(*(face.labels for face in faces))
    tables = confusion_matrices(truth, parsed)
    for name, value in agreement_of(parsed, truth)._asdict().items():
        assert intervals[name].estimate == pytest.approx(value, abs=1e-9)
        assert intervals[name].low <= value <= intervals[name].high
    by_class = measure.of_classes(rows)
    expected = dict(zip(LABELS, class_ious(tables.sum(0)).tolist(), strict=True))
    assert by_class == {n: None if np.isnan(v) else pytest.approx(v) for n, v in expected.items()}


@pytest.mark.slow
def test_mask_agreement_agrees_with_torchmetrics(faces):
    truth = as_batch(*(face.labels for face in faces))
    parsed = truth.roll(3, dims=2)
    result = agreement_of(parsed, truth)
    arguments: dict[str, Any] = {"num_classes": len(LABELS), "validate_args": False}
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    accuracy = MulticlassAccuracy(average="micro", **arguments)(parsed.long(), truth.long())
    iou = MulticlassJaccardIndex(average="macro", **arguments)(parsed.long(), truth.long())
    assert result.accuracy == pytest.approx(100 * float(accuracy), rel=1e-5)
    assert result.mean_iou == pytest.approx(100 * float(iou), rel=1e-5)
    tables = (
        confusion_matrices(truth, parsed)
        .flatten(1)
        .numpy()
        .astype(np.float64)
        .sum(0, keepdims=True)
    )
    assert pooled_accuracy(tables)[0] == pytest.approx(result.accuracy)
    assert pooled_mean_iou(tables)[0] == pytest.approx(result.mean_iou)


def test_edge_agreement_is_that_of_single_pictures(faces, face_pictures):
    scores = edge_agreements(face_pictures, as_batch(*(face.sketch for face in faces)), 2)
    expected = [edge_agreement(face.image, face.sketch, 2) for face in faces]
    np.testing.assert_allclose(scores, expected)
