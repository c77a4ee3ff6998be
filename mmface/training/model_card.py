"""The README of an exported pipeline: what it is, what made it, what it may be used for."""

from collections.abc import Mapping

from mmface.objectives.objective import Objective
from mmface.training.task import RunFacts

_CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
tags:
- mmface
- face-generation
---

# {title}

MMFace-DiT ([arXiv 2603.29029](https://arxiv.org/abs/2603.29029)): faces from a segmentation mask
or a sketch plus a prompt, trained with mmface.

```python
{usage}
face = pipe("a man with black hair", mask="mask.png", seed=0).images[0]
```

{table}

Weights are averages over the steps. Made with {versions}.

## Licence and use

The code of mmface is under the MIT licence. These weights inherit the terms of what they were made
of: the pictures and captions of the data set named above, the autoencoder, and the text encoder.
CelebA-HQ and FFHQ, the data sets of the paper, are for non-commercial use; the FLUX.1 autoencoder
and the Stable Diffusion text encoder carry licences of their own. Made faces are synthetic: say so
where you show them, and do not use them to deceive.
"""


PIPELINE_USAGE = """\
from mmface import MMFacePipeline

pipe = MMFacePipeline.from_pretrained("PATH_OR_HUB_ID_OF_THIS_FOLDER")"""


def adapter_usage(base: str) -> str:
    """How an adapter is loaded in Python."""
    return f"""\
from mmface import MMFacePipeline

pipe = MMFacePipeline.from_pretrained("{base}")
pipe.load_lora_weights("PATH_OR_HUB_ID_OF_THIS_FOLDER")"""


def _setting(facts: RunFacts, name: str) -> str:
    return f"`{facts.settings[name]}`" if facts.settings.get(name) is not None else "not recorded"


def _stores(facts: RunFacts) -> str:
    names = [n for n in facts.settings if n.startswith("samples.") and n.endswith(".store")]
    return ", ".join(_setting(facts, name) for name in names) or "not recorded"


def model_card(
    title: str,
    config: Mapping[str, object],
    objective: Objective,
    image_size: int,
    sampling: str,
    facts: RunFacts,
    usage: str = PIPELINE_USAGE,
) -> str:
    """Write the card: Markdown with the front matter that the Hugging Face hub reads."""
    samples = facts.steps * facts.global_batch_size
    # Table 3's models without rotary positions have no such setting.
    positions = f", text positions {config['text_rope']}" if "text_rope" in config else ""
    rows = {
        "objective": objective.title,
        "times": f"`{objective.time}`",
        "loss": ", ".join(f"{name}: `{term}`" for name, term in objective.terms.items()),
        "network": f"{config['depth']} blocks of width {config['hidden_size']}, "
        f"{config['num_heads']} heads{positions}",
        "pictures": f"{image_size} x {image_size} px, {sampling}",
        "training": f"{facts.steps:,} steps of {facts.global_batch_size} samples: {samples:,}, "
        f"{samples / max(1, facts.num_items):.1f} epochs",
        "data": f"{facts.num_items:,} faces, {_stores(facts)}",
        "autoencoder": _setting(facts, "task.vae"),
        "text encoder": _setting(facts, "task.text"),
        "first weights": _setting(facts, "task.init_from")
        if facts.settings.get("task.init_from")
        else f"those of the teacher {_setting(facts, 'task.teacher')}"
        if facts.settings.get("task.teacher")
        else "random",
    }
    if "loss" in facts.final:
        rows["last loss"] = f"{facts.final['loss']:.4f}"
    table = "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    )
    made_with = ", ".join(f"{name} {number}" for name, number in facts.versions.items())
    versions = made_with or "versions not recorded"
    return _CARD.format(title=title, table=table, versions=versions, usage=usage)
