"""What a picture shows, whatever its prompt says: colours by region, age lines, beard, glasses.

None of these numbers is good or bad by itself. `mmface.evaluation.drift` compares them between
pictures of one face whose prompts differ in one word.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from PIL import Image, ImageFilter
from torch import Tensor

from mmface.conditions import LABEL_INDEX
from mmface.metrics.caption_agreement import JudgeMetric, choice_probabilities
from mmface.metrics.condition_agreement import ParserMetric
from mmface.metrics.metric import Column, PictureOrder, Values, register
from mmface.metrics.preprocessing import check_pictures

Images = UInt8[Tensor, "batch 3 height width"]
Region = Bool[np.ndarray, "height width"]

MIN_REGION_PX = 20
"""Smaller regions have no colour of their own, and give None."""
LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""
PLAIN_REGIONS: Mapping[str, tuple[str, ...]] = {
    "hair": ("hair",),
    "clothes": ("cloth",),
    "background": ("background",),
    "eyes": ("l_eye", "r_eye"),
}
"""Parts of a picture whose colour is read -> their classes in the mask."""


def _region(labels: UInt8[np.ndarray, "height width"], classes: Sequence[str]) -> Region:
    return np.isin(labels, [LABEL_INDEX[name] for name in classes])


def skin_regions(labels: UInt8[np.ndarray, "height width"]) -> tuple[Region, Region]:
    """The skin of cheeks and forehead, and that of mouth and chin, where a beard grows.

    They part at the lower edge of the nose; without a nose, in the middle of the skin.
    """
    skin = _region(labels, ("skin",))
    rows = np.flatnonzero(_region(labels, ("nose",)).any(1))
    if not rows.size:
        of_skin = np.flatnonzero(skin.any(1))
        rows = of_skin[: (of_skin.size + 1) // 2]
    edge = int(rows[-1]) + 1 if rows.size else 0
    upper, lower = skin.copy(), skin.copy()
    upper[edge:] = False
    lower[:edge] = False
    return upper, lower


def _mean_colour(
    image: UInt8[np.ndarray, "height width 3"], region: Region
) -> Float64[np.ndarray, " 3"] | None:
    return image[region].mean(0) if region.sum() >= MIN_REGION_PX else None


def fine_lines(image: UInt8[np.ndarray, "height width 3"], region: Region) -> float | None:
    """How strong lines of a few pixels are: mean distance to the local median, in per cent of luma.

    The region's rim, where other things begin, is left out.
    """
    size = 2 * (image.shape[0] // 64) + 1
    inner = np.array(Image.fromarray(region).convert("L").filter(ImageFilter.MinFilter(size))) > 0
    if inner.sum() < MIN_REGION_PX:
        return None
    luma = (image @ LUMA).round().astype(np.uint8)
    smooth = np.array(Image.fromarray(luma).filter(ImageFilter.MedianFilter(size + 2)), np.float64)
    return float(100 * np.abs(luma - smooth)[inner].mean() / max(luma[inner].mean(), 1.0))


def read_attributes(
    image: UInt8[np.ndarray, "height width 3"],
    labels: UInt8[np.ndarray, "height width"],
    parsed: UInt8[np.ndarray, "height width"],
) -> Values:
    """Read a picture in the regions of the mask that it was made from.

    `parsed` is the parser's label map of the picture. A region that is not there gives None.
    """
    upper, lower = skin_regions(labels)
    colours = {part: _mean_colour(image, _region(labels, of)) for part, of in PLAIN_REGIONS.items()}
    colours = {"skin": _mean_colour(image, upper)} | colours
    values: Values = {}
    for part, colour in colours.items():
        luma = None if colour is None else float(colour @ LUMA)
        warmth = None if colour is None else float(colour[0] - colour[2])
        values |= {f"{part}_luma": luma, f"{part}_warmth": warmth}
    del values["eyes_luma"]  # of a pupil, an iris and the white together
    values["age_lines"] = fine_lines(image, upper)
    values["beard"], chin = None, _mean_colour(image, lower)
    if chin is not None and colours["skin"] is not None:
        distance = float(np.linalg.norm(chin - colours["skin"]))
        values["beard"] = 100 * distance / max(float(np.linalg.norm(colours["skin"])), 1.0)
    values["glasses"] = float(100 * (parsed == LABEL_INDEX["eye_g"]).mean())
    return values


@register
class Attributes(ParserMetric):
    """What a picture shows, by its colours in the regions of its mask.

    Luma is 0 to 255. Warmth is red minus blue. Age lines are what `fine_lines` gives of cheeks and
    forehead. Beard is how far, in per cent, the colour below the nose is from that above.
    Glasses are the share of the picture, in per cent, that the parser takes for them.
    """

    name = "attributes"
    columns: ClassVar = {
        "skin_luma": Column("skin luma", None, 1),
        "skin_warmth": Column("skin warmth", None, 1),
        "age_lines": Column("age lines", None, 2),
        "beard": Column("beard", None, 1),
        "eyes_warmth": Column("eyes warmth", None, 1),
        "glasses": Column("glasses", None, 2),
        "hair_luma": Column("hair luma", None, 1),
        "hair_warmth": Column("hair warmth", None, 1),
        "clothes_luma": Column("clothes luma", None, 1),
        "clothes_warmth": Column("clothes warmth", None, 1),
        "background_luma": Column("background luma", None, 1),
        "background_warmth": Column("background warmth", None, 1),
    }
    needs = frozenset({"picture", "mask"})

    @property
    def protocol(self) -> str:
        """The parser by its weights, which finds the glasses."""
        return f"colours-in-regions/{super().protocol}"

    def read(self, products: Images, orders: Sequence[PictureOrder]) -> list[Values]:
        """Read each picture in the regions of its mask."""
        assert self._parser is not None
        pictures = list(products.movedim(1, -1).cpu().numpy())
        parsed = self._parser(pictures)
        triples = zip(pictures, orders, parsed, strict=True)
        return [read_attributes(image, order.condition, maps) for image, order, maps in triples]


QUESTIONS: Mapping[str, tuple[str, str]] = {
    "judged_dark_skin": ("dark skin", "Does this person have dark skin?"),
    "judged_elderly": ("elderly", "Is this person elderly?"),
    "judged_woman": ("woman", "Is this person a woman?"),
    "judged_smile": ("smile", "Is this person smiling?"),
    "judged_beard": ("beard", "Does this person have a beard?"),
    "judged_makeup": ("make-up", "Does this person wear visible make-up?"),
    "judged_glasses": ("glasses", "Does this person wear glasses?"),
    "judged_blue_eyes": ("blue eyes", "Does this person have blue eyes?"),
    "judged_dark_hair": ("dark hair", "Does this person have dark hair?"),
    "judged_colourful_clothes": ("colourful clothes", "Are this person's clothes colourful?"),
    "judged_dark_background": ("dark background", "Is the background of this picture dark?"),
    "judged_plain_background": ("plain background", "Is the background of this picture plain?"),
}
"""Column -> its heading, and what a judge is asked about every picture."""


@register
class JudgedAttributes(JudgeMetric):
    """What a vision-language model sees in a picture: the probability of "Yes" to each question.

    For photographs, where light moves colours more than words do.
    """

    name = "judged_attributes"
    columns: ClassVar = {name: Column(title, None, 3) for name, (title, _) in QUESTIONS.items()}

    def read(self, products: Images, orders: Sequence[PictureOrder]) -> list[Values]:
        """Ask every question about each picture."""
        assert self._judge is not None
        check_pictures(products)
        answers = [self._judge.answer_token(answer) for answer in ("Yes", "No")]
        asked = {name: f"{text} Please answer Yes or No." for name, (_, text) in QUESTIONS.items()}
        values = []
        for image in products:
            logits = {n: self._judge.next_token_logits(image, text) for n, text in asked.items()}
            values.append(
                {n: float(choice_probabilities(x, answers)[0]) for n, x in logits.items()}
            )
        return values
