"""Activation counts, and the neuron sets selected from them."""
