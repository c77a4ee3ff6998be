"""Registration with diffusers' AutoPipeline classes, for code that picks a pipeline by its task."""

from diffusers.pipelines import auto_pipeline

from mmface.sampling.pipeline import MMFacePipeline

NAME = "mmface"


def register_auto_pipelines() -> None:
    """Let `from_pipe` of AutoPipelineForText2Image, ForImage2Image and ForInpainting give it.

    diffusers has no registration of its own: this adds to its tables, in this process. Their
    `from_pretrained` cannot read the name of a class with code of its own, as exports have it;
    load by `MMFacePipeline.from_pretrained`, then take `from_pipe`.
    """
    for task in ("TEXT2IMAGE", "IMAGE2IMAGE", "INPAINT"):
        getattr(auto_pipeline, f"AUTO_{task}_PIPELINES_MAPPING")[NAME] = MMFacePipeline
