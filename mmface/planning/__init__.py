"""What a run will need of memory, disk and time, computed beforehand and without a GPU.

Only scripts call `training.plan`, `sampling.plan_command` and `encoding.plan_precompute`.
"""
