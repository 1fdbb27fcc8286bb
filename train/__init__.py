"""Floating point: real data, spike encodings, spiking networks with surrogate gradients, and the loop training them."""
