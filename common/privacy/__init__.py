"""Privacy as facts (events), numbers derived from them (accounting), and where they are kept (ledger)."""
