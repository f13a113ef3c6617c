"""Vectors: from Parquet columns, as scatter plots and quantiles."""
