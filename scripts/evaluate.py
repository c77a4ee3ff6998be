"""Measure a pipeline on held-out rendered faces: python scripts/evaluate.py [key=value ...]."""

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from mmface.evaluation.held_out import as_table


@hydra.main(config_path="../configs", config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> None:
    """Run the evaluation that the composed config describes."""
    print(as_table(instantiate(config).run()))
    print(f"result: {config.output}")


if __name__ == "__main__":
    main()
