"""Doing without the optional libraries that diffusers and transformers load unasked.

Where bitsandbytes, peft, scipy and torchvision are installed, the first model class loads them all,
which takes three of the seven seconds before a picture that needs none of them.
"""

import sys

_FOUND_BY_DIFFUSERS = ("bitsandbytes", "peft", "scipy", "torchvision")
_FOUND_BY_TRANSFORMERS = ("scipy", "sklearn", "torchvision")


def hide_optional_libraries() -> None:
    """Hide them as long as the process lives, as if they were not installed.

    For a process that is about to import diffusers and transformers, and will ask for no LoRA and
    no quantized weights. It changes nothing where one of the two was imported before.
    """
    if {"diffusers", "transformers"} & sys.modules.keys():
        return
    from diffusers.utils import import_utils

    flags = dict.fromkeys((f"_{library}_available" for library in _FOUND_BY_DIFFUSERS), False)
    if (
        flags.keys() <= vars(import_utils).keys()
    ):  # or it is a diffusers of which this knows nothing
        vars(import_utils).update(flags)
        sys.modules.update(dict.fromkeys(_FOUND_BY_TRANSFORMERS))  # type: ignore[arg-type]
