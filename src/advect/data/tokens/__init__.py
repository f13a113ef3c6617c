"""Sequences of tokens: text, FASTA and whole numbers."""
