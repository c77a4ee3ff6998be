"""Students of few steps beside their teacher: what a mask or a colour cannot tell apart.

An average picture follows its mask and its colours, too. So each row also has the error from the
teacher's latents of the same noise, a distance of distributions, the spread of what the prompt does
not name (skin), and the spread over seeds. Differences are of the same faces and seeds.

The distance is the Frechet one of the built-in CLIP's pooled states, whose squared length is about
93: of unit-length states it is that much smaller. It compares with the true pictures of the same
faces, so that it may be less than that of two sets of true pictures, 2.4 at 256 faces. It needs
more faces than the 96 numbers of a state: at 4 faces it is about 30, whatever the pictures.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from tqdm import tqdm

from mmface.conditions import LABELS
from mmface.core.command_line import check_whole
from mmface.core.files import locked, write_bytes, write_text
from mmface.core.journal import as_json
from mmface.core.sources import default_device
from mmface.data.pictures import HELD_OUT_SEED
from mmface.encoders.face_parser import FaceParser
from mmface.encoders.vae import to_uint8
from mmface.evaluation.held_out import Tally
from mmface.evaluation.methods import PipelineMethod
from mmface.metrics.backbones import ClipStatesBackbone
from mmface.metrics.condition_agreement import pooled_mean_iou
from mmface.metrics.feature_sets import FeatureStatistics, frechet_distance
from mmface.metrics.statistics import Interval, bootstrap
from mmface.rendered import RenderedFace, distribution

COLOURS = ("hair", "clothes", "background")
SKIN = LABELS.index("skin")
TRUTH = "true pictures"
Arrays = dict[str, np.ndarray]
_GREY = np.array([0.299, 0.587, 0.114])


def skin_brightness(image: np.ndarray, face: RenderedFace) -> float:
    """Median brightness, 0 to 255, of a picture where the face's mask has skin."""
    return float(np.median(image[face.labels == SKIN] @ _GREY))


def _mean_iou(sums: np.ndarray) -> np.ndarray:
    return pooled_mean_iou(sums) / 100


def _share(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def _deviation(sums: np.ndarray) -> np.ndarray:
    """Standard deviation of sums of squares, values and ones: [B, 3] -> [B]."""
    return np.sqrt(np.maximum(sums[:, 0] / sums[:, 2] - (sums[:, 1] / sums[:, 2]) ** 2, 0))


def _root(sums: np.ndarray) -> np.ndarray:
    return np.sqrt(_share(sums))


STATISTICS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean_iou": _mean_iou,
    **dict.fromkeys(COLOURS, _share),
    "rmse": _root,
    "skin": _deviation,
    "seeds": _share,
}
"""What sums over faces become, by column; a face's terms are in `terms_of`."""
RATIOS = ("skin", "seeds")
"""Columns that are compared with the reference as a ratio; `rmse` is so already."""


def terms_of(row: Arrays, reference: Arrays) -> Arrays:
    """What each face adds to a column's sums: [faces, terms]."""
    ones = np.ones(len(row["skin"]))
    terms = {
        "mean_iou": row["confusion"],
        "skin": np.stack([row["skin"] ** 2, row["skin"], ones], 1),
    }
    for name in COLOURS:
        terms[name] = np.stack([row[f"{name}_right"], row[f"{name}_asked"]], 1)
    if "latents" in row:
        squares = (row["latents"].astype(np.float64) - reference["latents"]) ** 2
        terms["rmse"] = np.stack([squares.reshape(len(ones), -1).mean(1), ones], 1)
        terms["seeds"] = np.stack([row["seeds"], np.ones(len(row["seeds"]))], 1)
    return {name: values.astype(np.float64) for name, values in terms.items()}


def compared(own: np.ndarray, other: np.ndarray, column: str) -> Interval:
    """The difference, or ratio, of a column over the same faces, resampled together."""
    statistic, half = STATISTICS[column], own.shape[1]

    def of_both(sums: np.ndarray) -> np.ndarray:
        first, second = statistic(sums[:, :half]), statistic(sums[:, half:])
        with np.errstate(divide="ignore", invalid="ignore"):  # one face drawn alone has no spread
            return first / second if column in RATIOS else first - second

    return bootstrap(np.concatenate((own, other), 1), of_both)


@dataclass(frozen=True)
class FewStepsEvaluation:
    """Measures pipelines of few steps on fresh rendered faces.

    Attributes:
        methods: rows by name, of pipelines with one VAE.
        reference: the name of the row that the others are compared with.
        parser: folder of the face parser.
        clip: folder of the CLIP pair whose states the distance of distributions is of.
        output_dir: folder of the results; rows that are there already are not made again.
        num_faces: faces of each condition.
        first_face: number of the first face among the held-out ones.
        modalities: conditions.
        num_seeds: seeds of each of the first `num_seed_faces` faces, for the spread over seeds.
        num_seed_faces: faces with so many seeds.
        batch_size: faces sampled at once.
        distribution: which faces are drawn.
    """

    methods: Mapping[str, PipelineMethod]
    reference: str
    parser: str | Path
    clip: str | Path
    output_dir: str | Path
    num_faces: int = 256
    first_face: int = 0
    modalities: Sequence[str] = ("mask", "sketch")
    num_seeds: int = 8
    num_seed_faces: int = 32
    batch_size: int = 16
    distribution: str = "studio"
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name in ("num_faces", "num_seeds"):
            check_whole(name, getattr(self, name), 2)
        check_whole("num_seed_faces", self.num_seed_faces, 2, self.num_faces)
        check_whole("batch_size", self.batch_size, 1)
        distribution(self.distribution)
        if self.reference not in self.methods:
            raise ValueError(f"reference is one of {', '.join(self.methods)}")
        for method in self.methods.values():
            if (why := method.unavailable()) is not None:
                raise FileNotFoundError(f"{method.name} is {why.reason}; {why.remedy}")
        for name in ("parser", "clip"):
            if not Path(getattr(self, name)).is_dir():
                raise FileNotFoundError(f"{getattr(self, name)} does not exist; give {name}=DIR")

    def report(self) -> str:
        """Measure, write `results.json` and `table.md`, and give the table."""
        folder = Path(self.output_dir)
        with locked(folder):
            results: dict[str, dict[str, Any]] = {
                "students": {"num_faces": self.num_faces, "distribution": self.distribution},
                "conditions": {modality: self._table(modality) for modality in self.modalities},
            }
            write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
            table = as_table(results["conditions"])
            write_text(folder / "table.md", table)
        return f"{table}\nresult: {folder}"

    def _table(self, modality: str) -> dict[str, Any]:
        size = self.methods[self.reference].pipeline.config.image_size
        seeds = range(
            HELD_OUT_SEED + self.first_face, HELD_OUT_SEED + self.first_face + self.num_faces
        )
        faces = [distribution(self.distribution).render(seed, size) for seed in seeds]
        truth = self._read(faces, np.stack([face.image for face in faces]))
        rows = {name: self._row(method, faces, modality) for name, method in self.methods.items()}
        reference = rows[self.reference]
        real = FeatureStatistics.of(torch.from_numpy(truth["features"]))
        own = {name: terms_of(row, reference) for name, row in ({TRUTH: truth} | rows).items()}
        found: dict[str, Any] = {}
        for name, terms in own.items():
            columns = {key: bootstrap(values, STATISTICS[key]) for key, values in terms.items()}
            found[name] = {key: _plain(one) for key, one in columns.items()}
            found[name]["against_reference"] = {
                key: _plain(compared(values, own[self.reference][key], key))
                for key, values in terms.items()
                if key != "rmse"
            }
            if name != TRUTH:
                features = FeatureStatistics.of(torch.from_numpy(rows[name]["features"]))
                found[name]["distance"] = frechet_distance(real, features)
                found[name]["evaluations"] = float(rows[name]["evaluations"])
        for row in found.values():
            if "distance" in row:
                ratio = row["distance"] / found[self.reference]["distance"]
                row["against_reference"]["distance"] = ratio
        return found

    def _row(self, method: PipelineMethod, faces: Sequence[RenderedFace], modality: str) -> Arrays:
        made_by = method.made_by() | {
            "modality": modality,
            **{name: getattr(self, name) for name in ("num_faces", "first_face", "num_seeds")},
            "num_seed_faces": self.num_seed_faces,
            **({} if self.distribution == "studio" else {"distribution": self.distribution}),
        }
        digest = hashlib.sha256(as_json(made_by).encode()).hexdigest()[:16]
        path = Path(self.output_dir) / "rows" / f"{digest}.npz"
        if path.is_file():
            with np.load(path) as there:
                return dict(there)
        row = self._made(method, faces, modality)
        content = io.BytesIO()
        np.savez(content, **row)  # type: ignore[arg-type]
        write_bytes(path, content.getvalue())
        return row

    def _made(self, method: PipelineMethod, faces: Sequence[RenderedFace], modality: str) -> Arrays:
        firsts = range(0, len(faces), self.batch_size)
        latents, pictures = [], []
        for first in tqdm(firsts, desc=f"{method.name}, {modality}", unit="batch"):
            batch = faces[first : first + self.batch_size]
            seeds = [HELD_OUT_SEED + first + place for place in range(len(batch))]
            made, evaluations = self._sampled(method, batch, modality, seeds)
            latents.append(made)
            pictures.append(self._decoded(method, made))
        row = self._read(faces, np.concatenate(pictures))
        row["latents"] = torch.cat(latents).numpy().astype(np.float16)
        row["evaluations"] = np.array(evaluations)
        row["seeds"] = self._spread_over_seeds(method, faces[: self.num_seed_faces], modality)
        return row

    def _sampled(
        self,
        method: PipelineMethod,
        faces: Sequence[RenderedFace],
        modality: str,
        seeds: Sequence[int],
    ) -> tuple[Float32[Tensor, "batch channels height width"], float]:
        given: dict[str, Any] = {
            modality: [face.labels if modality == "mask" else face.sketch for face in faces]
        }
        output = method.pipeline.to(default_device())(
            [face.captions[0] for face in faces],
            **given,
            num_inference_steps=method.num_inference_steps,
            guidance=method.guidance,
            solver=method.solver,
            seed=list(seeds),
            output_type="latent",
        )
        return torch.as_tensor(output.images).cpu(), output.evaluations

    @torch.no_grad()
    def _decoded(self, method: PipelineMethod, latents: Tensor) -> np.ndarray:
        return np.stack(list(to_uint8(method.pipeline.codec.decode(latents))))

    def _spread_over_seeds(
        self, method: PipelineMethod, faces: Sequence[RenderedFace], modality: str
    ) -> np.ndarray:
        """Standard deviation of the pixels over seeds, on average over a face's pixels."""
        spreads = []
        for number, face in enumerate(faces):
            seeds = [HELD_OUT_SEED * 2 + number * self.num_seeds + k for k in range(self.num_seeds)]
            made, _ = self._sampled(method, [face] * self.num_seeds, modality, seeds)
            spreads.append(self._decoded(method, made).astype(np.float64).std(0).mean())
        return np.array(spreads)

    def _read(self, faces: Sequence[RenderedFace], pictures: np.ndarray) -> Arrays:
        if not self._loaded:
            self._loaded["parser"] = FaceParser.from_pretrained(self.parser)
            self._loaded["clip"] = ClipStatesBackbone.from_pretrained(self.clip)
        lines, features = [], []
        for first in range(0, len(faces), self.batch_size):
            group = pictures[first : first + self.batch_size]
            parsed = self._loaded["parser"](list(group))
            pixels = torch.from_numpy(group).movedim(-1, 1).contiguous()
            features.append(self._loaded["clip"](pixels))
            batch = faces[first : first + self.batch_size]
            lines += [_of_picture(*one) for one in zip(group, parsed, batch, strict=True)]
        row = {name: np.stack([line[name] for line in lines]) for name in lines[0]}
        return row | {"features": torch.cat(features).numpy()}


def _of_picture(image: np.ndarray, parsed: np.ndarray, face: RenderedFace) -> Arrays:
    tally = Tally()
    tally.add(image, parsed, face)
    numbers = {"confusion": tally.confusion.ravel(), "skin": np.array(skin_brightness(image, face))}
    for name in COLOURS:
        numbers[f"{name}_right"] = np.array(tally.colours_right.get(name, 0))
        numbers[f"{name}_asked"] = np.array(tally.colours_asked.get(name, 0))
    return numbers


def _plain(interval: Interval) -> list[float]:
    return [interval.estimate, interval.low, interval.high]


HEADINGS = {
    "mean_iou": "mIoU",
    "hair": "hair",
    "clothes": "clothes",
    "background": "background",
    "rmse": "RMSE",
    "skin": "skin",
    "seeds": "seeds",
}


def as_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay results out as Markdown, a table a condition, each number with its 95 % interval."""
    lines: list[str] = []
    for modality, rows in results.items():
        heads = [modality, "evaluations", "distance", *HEADINGS.values()]
        lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for name, row in rows.items():
            cells = [name, f"{row['evaluations']:g}" if "evaluations" in row else "-"]
            cells.append(f"{row['distance']:.3f}" if "distance" in row else "-")
            for key in HEADINGS:
                digits = 1 if key in RATIOS else 3
                cells.append(
                    "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*row[key], d=digits)
                    if key in row
                    else "-"
                )
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
