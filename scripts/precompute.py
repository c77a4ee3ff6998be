"""Make a store that training reads: python scripts/precompute.py experiment=NAME [key=value].

Start it through `accelerate launch`, or without a GPU through `torchrun`, to share the work between
processes and machines; start it again after an interruption to go on. With plan=true it says what
it would take, and ends.
"""

import sys

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from mmface.core.command_line import ending


@hydra.main(config_path="../configs", config_name="precompute", version_base="1.3")
def main(config: DictConfig) -> None:
    """Build the job that the composed config describes, and write this process's share."""
    from mmface.core.processes import joined_processes  # loads torch, which takes seconds

    state = joined_processes()
    with ending():
        job = instantiate(config.job, _convert_="all")
        if config.plan:
            from mmface.planning.encoding import plan_precompute

            plan = plan_precompute(job, config.output_dir, state.num_processes)
            state.on_main_process(print)(plan)
            return
        job.write(config.output_dir, state.process_index, state.num_processes)
        state.wait_for_everyone()
        if state.is_main_process:
            report(config.output_dir)


def report(folder: str) -> None:
    """Say where the result lies and what it lacks; a store without a row is an error."""
    from mmface.data.store import SKIPPED_FILE, close_store

    store = close_store(folder)
    skipped = len(store.skipped)
    if skipped:
        print(f"{skipped:,} of {store.spec.num_items:,} skipped; why: {folder}/{SKIPPED_FILE}")
    if not len(store):
        raise ValueError(f"nothing could be read; {folder}/{SKIPPED_FILE} says why")
    print(f"result: {folder}")


if __name__ == "__main__":
    if sys.argv[1:] in (["--help"], ["-h"]):  # hydra's own help needs an experiment
        print(__doc__)
    else:
        with ending():
            main()
