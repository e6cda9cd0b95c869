"""The coordinator: rounds, optimiser, central evaluation, report."""
