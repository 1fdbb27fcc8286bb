"""From a trained network to integers, and what integers do.

All but `fold`, `scales` need no torch: the host of a chip runs them as they are.
"""
