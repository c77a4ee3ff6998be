"""The stack of layers that makes a candid face, from the background to the earrings."""

import numpy as np

from mmface.rendered.candid.attributes import CandidAttributes
from mmface.rendered.candid.body import draw_background, draw_clothes, draw_neck, draw_necklace
from mmface.rendered.candid.canvas import CandidScene
from mmface.rendered.candid.features import draw_brow, draw_eye, draw_mouth, draw_nose
from mmface.rendered.candid.hair import draw_back_hair, draw_front_hair
from mmface.rendered.candid.head import draw_ear, draw_skin
from mmface.rendered.candid.worn import draw_earrings, draw_glasses, draw_hat
from mmface.rendered.scene import planes


def draw_scene(attributes: CandidAttributes, size: int) -> CandidScene:
    """Draw a face."""
    scene = CandidScene(attributes, size)
    draw_background(scene)
    draw_back_hair(scene)
    draw_neck(scene)
    draw_clothes(scene)
    if attributes.necklace:
        draw_necklace(scene)
    draw_ear(scene, scene.far)
    near_in_front = scene.turn > 0.12
    if not near_in_front:
        draw_ear(scene, -scene.far)
    face = draw_skin(scene)
    if near_in_front:
        draw_ear(scene, -scene.far)
    draw_mouth(scene)
    sides = (scene.far, -scene.far)
    for side in sides:
        draw_eye(scene, side)
        draw_brow(scene, side)
    draw_nose(scene, face)
    draw_front_hair(scene)
    if attributes.glasses:
        draw_glasses(scene)
    if attributes.hat:
        draw_hat(scene)
    if attributes.earrings:
        draw_earrings(scene)
    return scene


def finished_image(scene: CandidScene) -> np.ndarray:
    """The picture, uint8 [S, S, 3]."""
    warmth = 0.022 * scene.face.warmth
    pixels = scene.pixels * planes((1 + warmth, 1.0, 1 - warmth))
    image = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0))
