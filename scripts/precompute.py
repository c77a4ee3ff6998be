"""Make a store that training reads: python scripts/precompute.py experiment=NAME [key=value].

Start it through `accelerate launch` to share the work between processes; start it again after an
interruption to go on.
"""

import hydra
from accelerate import PartialState
from hydra.utils import instantiate
from omegaconf import DictConfig


@hydra.main(config_path="../configs", config_name="precompute", version_base="1.3")
def main(config: DictConfig) -> None:
    """Build the job that the composed config describes, and write this process's share."""
    state = PartialState()
    job = instantiate(config.job, _convert_="all")
    job.write(config.output_dir, state.process_index, state.num_processes)
    state.wait_for_everyone()
    if state.is_main_process:
        print(f"result: {config.output_dir}")


if __name__ == "__main__":
    main()
