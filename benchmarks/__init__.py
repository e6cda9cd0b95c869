"""What Hushclick costs and what its models are worth, measured: `python -m benchmarks [NAME ...]`.

Timings are ratios of two measurements of one run on one machine; nothing here passes or fails. docs/benchmarks.md holds
the figures that were seen.
"""
