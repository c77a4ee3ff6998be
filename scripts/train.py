"""Train what an experiment describes: python scripts/train.py experiment=tiny_flow [key=value]."""

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig


@hydra.main(config_path="../configs", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """Build the trainer that the composed config describes, and run it."""
    print(f"result: {instantiate(config.trainer).train()}")


if __name__ == "__main__":
    main()
