"""Train what an experiment describes: python scripts/train.py experiment=tiny_flow [key=value].

A mistake is one line; HYDRA_FULL_ERROR=1 in the environment shows where it came up.
"""

import sys
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mmface.core.command_line import ending


@hydra.main(config_path="../configs", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """Run what the composed config describes, and end with its status."""
    with ending():
        status = run(config)
    if status:
        sys.exit(status)


def run(config: DictConfig) -> int:
    """Build the trainer and run it, or plan the run; give the exit status."""
    import torch  # loading it takes seconds, which `--help` and a misspelt key need not wait for

    from mmface.core.processes import STOPPED_STATUS

    if config.plan:
        from mmface.planning.training import plan

        with torch.device("meta"):
            network = instantiate(config.model, _convert_="all")
        settings: Any = OmegaConf.to_container(config, resolve=True)
        print(plan(network, settings).table())
        return 0
    torch.manual_seed(config.trainer.recipe.seed)  # of the first weights, made below
    # The settings go in last: as a part of the config, they would be built a second time.
    trainer = instantiate(config.trainer, _partial_=True)(
        settings=OmegaConf.to_container(config.trainer, resolve=True)
    )
    print(f"result: {trainer.train()}")
    return 0 if trainer.finished else STOPPED_STATUS


if __name__ == "__main__":
    main()
