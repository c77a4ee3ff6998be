"""Train what an experiment describes: python scripts/train.py experiment=tiny_flow [key=value]."""

import sys
from typing import Any

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mmface.planner import plan
from mmface.processes import STOPPED_STATUS


@hydra.main(config_path="../configs", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """Build the trainer that the composed config describes, and run it; or plan the run."""
    if config.plan:
        with torch.device("meta"):
            network = instantiate(config.model, _convert_="all")
        settings: Any = OmegaConf.to_container(config, resolve=True)
        print(plan(network, settings).table())
        return
    # The settings go in last: as a part of the config, they would be built a second time.
    trainer = instantiate(config.trainer, _partial_=True)(
        settings=OmegaConf.to_container(config.trainer, resolve=True)
    )
    print(f"result: {trainer.train()}")
    if not trainer.finished:
        sys.exit(STOPPED_STATUS)


if __name__ == "__main__":
    main()
