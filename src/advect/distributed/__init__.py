"""Processes of a run: environment, communication, launch, parallelism."""
