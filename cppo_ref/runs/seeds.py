"""Seeds: every random draw of a run is a function of its seed and of where in the run it is made."""

import numpy as np


def stream_seed(*keys: int) -> int:
    """A 63-bit seed that depends on all `keys`."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 1)
