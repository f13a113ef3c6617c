"""Processes that share one run: who they are, what they tell each other, how they start."""
