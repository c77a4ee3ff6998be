"""Training: the loop, what is trained, checkpoints, and what a run logs.

`Trainer` (`trainer.py`) runs any `TrainingTask` (`task.py`); `FaceDiffusion` is the paper's. Losses
are in `objectives`, samples in `data`, and plans of a run's memory and time in `planning`.
"""
