"""Measure methods: python scripts/evaluate.py [protocol=tiny|paper table=1|2|3|vae] [key=value].

Start it through `accelerate launch` to share the work between processes; start it again after an
interruption to go on.
"""

import sys

import hydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, MissingMandatoryValue


@hydra.main(config_path="../configs", config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> None:
    """Run the evaluation that the composed config describes, and print its table."""
    try:
        report = instantiate(config.job, _convert_="all").report()
    except InstantiationException as error:
        sys.exit(f"error: {error.__cause__ or error}")
    except MissingMandatoryValue as error:
        name = str(error.full_key).rpartition(".")[2]
        sys.exit(f"error: {name} has no value; give it with {name}=VALUE")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if report:
        print(report)


if __name__ == "__main__":
    main()
