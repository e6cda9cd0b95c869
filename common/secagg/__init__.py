"""Secure aggregation: the server learns the sum of the partners' contributions and nothing else (docs/SECAGG.md)."""
