"""The name under which saved pipelines look for MMFaceDiT; the network is in `mmface.model`."""

from diffusers import ModelMixin  # diffusers loads a class only from a module with this name

from mmface.model.transformer import MMFaceDiT

__all__ = ["MMFaceDiT", "ModelMixin"]
