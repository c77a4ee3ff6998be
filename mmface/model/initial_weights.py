"""Initial weights for a training: ours or the authors', of either objective."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32
from torch import Tensor, nn

from mmface.core.sources import load_network, opened
from mmface.model.transformer import MMFaceDiT
from mmface.objectives.objective import objective_named
from mmface.objectives.solvers import NUM_TRAIN_TIMESTEPS


def load_initial_weights(
    transformer: MMFaceDiT, source: str | Path, translated: bool = True
) -> None:
    """Put saved weights into a model, translated if they were trained with another objective.

    Without leave to be `translated`, weights of another objective raise ValueError.

    `source` is the folder of a saved MMFaceDiT, or a safetensors file of the authors' layout, which
    is assumed to have the model's objective. The model keeps its objective and text positions.
    """
    path, own = Path(str(source)), transformer.config
    if not path.exists():
        raise FileNotFoundError(f"init_from: {path} does not exist.")
    if path.is_dir():
        with opened("transformer (init_from)", path) as source:
            saved = load_network(type(transformer), source)
        heads = saved.config.num_heads
        if heads != own.num_heads:  # which shapes do not show
            raise ValueError(
                f"init_from: {path} has {heads} heads, the model {own.num_heads}; "
                "set model.num_heads."
            )
    else:
        saved = MMFaceDiT.from_released(path, own.num_heads, objective=own.objective)
    if not translated and saved.config.objective != own.objective:
        raise ValueError(
            f"init_from: {path} was trained with {saved.config.objective}, and its adapter must "
            f"be, too: objective={saved.config.objective}."
        )
    translate_objective(saved, own.objective)
    try:
        transformer.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"init_from: the weights of {path} do not fit the model. {error}"
        ) from None


def translate_objective(model: MMFaceDiT, objective: str) -> None:
    """Adapt weights trained with one objective as a start for another, in place.

    The two count time in opposite directions and predict noise with opposite signs. So the time
    embedding is refitted by least squares: a timestep of the new objective is embedded as the old
    objective's timestep of the same signal-to-noise ratio. The output is negated if signs differ.
    The model's config names the old objective and is not changed.
    """
    old, new = objective_named(model.config.objective), objective_named(objective)
    if old.name == new.name:
        return
    steps = torch.arange(NUM_TRAIN_TIMESTEPS, dtype=torch.float32)
    # np.interp needs an increasing share; it decreases with time for one of the objectives.
    share, order = old.signal_share(steps).sort()
    same_noise = np.interp(new.signal_share(steps), share, steps[order]).astype(np.float32)
    first, _, last = model.time_mlp
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        wanted = time_embedding(model, torch.from_numpy(same_noise))
        hidden = F.silu(first(model.frequencies(steps)))
        inputs = torch.cat((hidden, torch.ones(len(steps), 1)), dim=1)
        # gelsd: neighbouring timesteps are so similar that the inputs lack full rank.
        fit = torch.linalg.lstsq(inputs.double(), wanted.double(), driver="gelsd").solution
        last.weight.copy_(fit[:-1].T)
        last.bias.copy_(fit[-1])
        if old.noise_sign != new.noise_sign:
            model.final_linear.weight.neg_()
            model.final_linear.bias.neg_()


def time_embedding(
    model: MMFaceDiT, timestep: Float32[Tensor, " steps"]
) -> Float32[Tensor, "steps width"]:
    """Embed timesteps in [0, 1000): the global condition without prompt and modality."""
    return model.time_mlp(model.frequencies(timestep))
