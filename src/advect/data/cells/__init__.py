"""Single cells from AnnData files."""
