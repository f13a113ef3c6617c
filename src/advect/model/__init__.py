"""A trained flow: load it, sample from it, ask for densities."""
