"""The name under which saved pipelines look for Table 3's networks; they are in `mmface.model`."""

from diffusers import ModelMixin  # diffusers loads a class only from a module with this name

from mmface.model.ablations import SinCosMMFaceDiT, SingleStreamDiT, UnimodalDiT

__all__ = ["ModelMixin", "SinCosMMFaceDiT", "SingleStreamDiT", "UnimodalDiT"]
