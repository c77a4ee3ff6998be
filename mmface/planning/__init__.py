"""What a run will take of memory, disk and time, before it begins and without a GPU.

`training.plan`, `sampling.plan_command` and `encoding.plan_precompute` are called by scripts alone:
what is planned knows nothing of its plans.
"""
