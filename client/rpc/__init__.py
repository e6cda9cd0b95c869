"""The contract between the shim that Flower starts and the partner's worker, and Flower's records on it."""
