"""Checkpoint folders: written whole, verified when read, never a pickle."""
