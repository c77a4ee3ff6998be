"""Train what an experiment describes: python scripts/train.py experiment=tiny_flow [key=value].

The same command gives the same weights, and goes on where an earlier start was stopped. A mistake
is one line; HYDRA_FULL_ERROR=1 in the environment shows where it came up.
"""

import os
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

import hydra
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from mmface.core.command_line import ending
from mmface.core.files import check_free
from mmface.training.recipe import CONFIG_KEYS, flattened, typed_name
from mmface.training.starting_points import setting_of

# ${start:INIT_FROM,NAME,DEFAULT}: a setting as the pipeline has it that a task starts from.
OmegaConf.register_new_resolver("start", setting_of, replace=True)


@hydra.main(config_path="../configs", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """Run what the composed config describes, and end with its status."""
    with ending(CONFIG_KEYS):
        status = run(config)
    if status:
        sys.exit(status)


def run(config: DictConfig) -> int:
    """Build the trainer and run it, or plan the run; give the exit status."""
    parts: dict[str, Any] = {
        name: instantiate(config.trainer[name]) for name in ("recipe", "cadence", "hardware")
    }
    if os.environ.get("RANK", "0") == "0" and not config.plan:
        check_free(config.trainer.output_dir)  # it is taken when the model is there
    import torch  # loading it takes seconds, which `--help` and a misspelt key need not wait for

    from mmface.core.processes import STOPPED_STATUS

    if config.plan:
        from mmface.planning.training import plan

        with torch.device("meta"):
            network = instantiate(config.model, _convert_="all")
        settings: Any = OmegaConf.to_container(config, resolve=True)
        task: Any = get_class(config.task._target_)
        print(plan(network, settings, task).table())
        return 0
    plain: Any = OmegaConf.to_container(config.trainer, resolve=True)
    names = [name for name in plain if name not in ("_target_", "_convert_")]
    parts |= {name: built(config.trainer[name]) for name in names if name not in (*parts, "task")}
    # The trainer has the task made when the run's seed is set, and all else is known to fit.
    parts["task"] = partial(built, config.trainer.task)
    make = instantiate({"_target_": config.trainer._target_, "_partial_": True})
    trainer = make(**parts, settings=plain, derived=derived(config, flattened(plain)))
    result = trainer.train()
    if not trainer.finished:
        done, total = trainer.step, trainer.recipe.total_steps
        trainer.accelerator.print(f"stopped at {done:,} of {total:,}; the same command goes on")
        return STOPPED_STATUS
    trainer.accelerator.print(f"result: {result}")
    if usage := trainer.task.usage(result):
        trainer.accelerator.print(f"sample: {usage}")
    return 0


def built(part: Any) -> Any:
    """Build a part of the config, or give the plain value that it is."""
    return instantiate(part, _convert_="all") if OmegaConf.is_config(part) else part


def derived(config: DictConfig, settings: Iterable[str]) -> list[str]:
    """Name the settings of the trainer whose value the config takes from another one of them."""
    typed = {typed_name(setting) for setting in settings}
    found = []
    for setting in settings:
        parent, _, key = f"trainer.{setting}".rpartition(".")
        node = OmegaConf.select(config, parent)
        if OmegaConf.is_dict(node) and OmegaConf.is_interpolation(node, key):
            unresolved: Any = OmegaConf.to_container(node, resolve=False)
            source = str(unresolved[key]).strip("${}")
            source = (
                typed_name(parent.removeprefix("trainer.")) + source if source[0] == "." else source
            )
            if source in typed:
                found.append(setting)
    return found


if __name__ == "__main__":
    with ending(CONFIG_KEYS):
        main()
