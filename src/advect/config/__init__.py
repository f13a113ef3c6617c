"""Configuration of a run, and construction of its parts."""
