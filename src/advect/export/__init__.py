"""Trained flows as files that run without advect: the network, and a sampler of fixed steps."""
