"""Measure methods: python scripts/evaluate.py [protocol=tiny|paper table=1|2|3|vae] [key=value].

Start it through `accelerate launch` to share the work between processes; start it again after an
interruption to go on.
"""

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from mmface.core.command_line import ending

TYPED = {"job": "", "job.protocol": ""}
"""A job's settings are typed without its name."""


@hydra.main(config_path="../configs", config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> None:
    """Run the evaluation that the composed config describes, and print its table."""
    with ending(TYPED):
        report = instantiate(config.job, _convert_="all").report()
    if report:
        print(report)


if __name__ == "__main__":
    with ending(TYPED):
        main()
