"""A saved pipeline as a folder: its components, each checked before it is used."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin

from mmface.core.command_line import check_number, check_whole
from mmface.core.networks import BrokenModelError, load_network, read_object
from mmface.encoders import LatentCodec, TextEncoder
from mmface.model.ablations import NETWORKS

_NETWORK_ROOM = ("mmface.model.transformer", "mmface.model.ablations")
_LIBRARIES = {
    "vae": ("diffusers",),
    "text_encoder": ("transformers",),
    "tokenizer": ("transformers",),
    "transformer": ("mmface.transformer", "mmface.ablations", *_NETWORK_ROOM),
    "scheduler": ("diffusers",),
}


def saved_components(
    folder: Path, dtype: torch.dtype, given: dict[str, Any], variant: str | None = None
) -> dict[str, Any]:
    """Load the components of a pipeline that `save_pretrained` wrote.

    Args:
        folder: The pipeline's.
        dtype: The dtype of all weights.
        given: Components that take the place of those in the folder.
        variant: The word in the names of the weights' files, if they have one.

    Returns:
        The components by their names, those given among them.

    Raises:
        ValueError: If something in the folder cannot be used.
    """
    index = read_object(folder / "model_index.json")
    scheduler = _scheduler_class(index, folder)
    check_whole(f"{folder}/model_index.json: image_size", index.get("image_size"), 1, 2**14)
    check_number(f"{folder}/model_index.json: guidance_scale", index.get("guidance_scale", 1.0), 0)
    where: dict[str, Any] = {"dtype": dtype} | ({"variant": variant} if variant else {})
    parts = {name: given[name] for name in _LIBRARIES if name in given}
    if "vae" not in parts:
        parts["vae"] = LatentCodec.from_pretrained(str(folder), "vae", **where).vae
    if not {"text_encoder", "tokenizer"} <= set(parts):
        text = TextEncoder.from_pretrained(folder, **where)
        parts = {"text_encoder": text.text_model, "tokenizer": text.tokenizer} | parts
    if "transformer" not in parts:
        network = NETWORKS[index["transformer"][1]]
        parts["transformer"] = load_network(network, str(folder), "transformer", **where)
    if "scheduler" not in parts and scheduler is not None:
        read_object(folder / "scheduler" / "scheduler_config.json")
        parts["scheduler"] = scheduler.from_pretrained(folder, subfolder="scheduler")
        _check_scheduler(parts["scheduler"], folder)
    return parts


def _scheduler_class(index: dict[str, Any], folder: Path) -> Any:
    """Check the classes that a pipeline names, none of which is imported by its name."""
    if index.get("_class_name") != "MMFacePipeline":
        raise BrokenModelError(
            f"{folder} holds a {index.get('_class_name')!r:.60}, not an MMFacePipeline; give a "
            "folder that MMFacePipeline.save_pretrained wrote"
        )
    named = index.get("transformer")
    if isinstance(named, list) and len(named) == 2 and str(named[1]) not in NETWORKS:
        raise BrokenModelError(
            f"{folder}/model_index.json names the network {named[1]!r:.60}, which is none of "
            f"{', '.join(NETWORKS)}; copy it again"
        )
    for name, libraries in _LIBRARIES.items():
        named = index.get(name)
        if name == "scheduler" and named in (None, [None, None]):
            return None
        if not (isinstance(named, list) and len(named) == 2 and named[0] in libraries):
            raise BrokenModelError(
                f"{folder}/model_index.json names {named!r:.60} as {name}, not a class of "
                f"{libraries[0]}; copy it again"
            )
    found = getattr(diffusers, str(index["scheduler"][1]), None)
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise BrokenModelError(
            f"{folder}/model_index.json names {index['scheduler'][1]!r:.60} as scheduler, which "
            "diffusers does not have; copy it again"
        )
    return found


def _check_scheduler(scheduler: Any, folder: Path) -> None:
    """Raise BrokenModelError if a scheduler's steps are no numbers, or a flow's beyond its time."""
    try:
        scheduler.set_timesteps(4)
        steps = torch.as_tensor(scheduler.timesteps).float()
        sigmas = torch.as_tensor(getattr(scheduler, "sigmas", [0.0])).float()
        last = scheduler.config["num_train_timesteps"]
        is_sound = bool(sigmas.isfinite().all() and ((steps >= 0) & (steps <= last)).all())
    except Exception as error:
        raise BrokenModelError(
            f"{folder}/scheduler cannot make steps ({type(error).__name__}: {error}); copy its "
            "config again"
        ) from error
    if not is_sound:
        raise BrokenModelError(
            f"{folder}/scheduler makes steps beyond its time; copy its config again"
        )
