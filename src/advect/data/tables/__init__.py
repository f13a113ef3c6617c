"""Tables with columns of any types."""
