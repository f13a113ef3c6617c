"""Sequences of one length or of many."""
