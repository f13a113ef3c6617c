"""The only place that wires parts together: configurations, presets and the jobs behind the commands."""
