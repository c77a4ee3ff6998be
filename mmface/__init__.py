"""MMFace-DiT: faces from a segmentation mask or a sketch plus a prompt.

from mmface import MMFacePipeline, builtin
pipe = MMFacePipeline.from_pretrained(builtin("tiny-flow"))
pipe("a woman with long red hair", mask="mask.png", seed=0).images[0].save("face.png")
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmface.core.sources import builtin_pipelines, unknown_builtin

if TYPE_CHECKING:
    from mmface.model.transformer import MMFaceDiT
    from mmface.sampling.pipeline import MMFacePipeline

__version__ = "0.1.0"
__all__ = ["MMFaceDiT", "MMFacePipeline", "__version__", "builtin"]

# diffusers imports bitsandbytes, which warns of an optional kernel that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def builtin(name: str) -> Path:
    """Return a built-in pipeline's folder, for `MMFacePipeline.from_pretrained`."""
    available = builtin_pipelines()
    if name not in available:
        raise ValueError(unknown_builtin("pipeline", name, available))
    return available[name]


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: importing torch and diffusers takes seconds.
    if name == "MMFacePipeline":
        from mmface.sampling.pipeline import MMFacePipeline

        return MMFacePipeline
    if name == "MMFaceDiT":
        from mmface.model.transformer import MMFaceDiT

        return MMFaceDiT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
