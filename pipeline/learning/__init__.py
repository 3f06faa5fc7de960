"""Torch: the affinity network, its losses, training and inference."""
