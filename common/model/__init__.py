"""The click model: interest from history, and the heads above it."""
