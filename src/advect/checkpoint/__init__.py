"""Checkpoint folders: written atomically, verified when read, never pickles."""
