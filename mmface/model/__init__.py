"""The network; start with `transformer.py`, which shows all of a forward pass.

`ablations.py` holds the variants of Table 3; `released.py` and `initial_weights.py` take weights
from elsewhere, `lora.py` adds to them, `recomputation.py` and `packed_modulations.py` trade memory
and speed. Losses, solvers and the pipeline are in other rooms.
"""
