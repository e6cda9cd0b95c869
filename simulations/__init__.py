"""Everything on one machine: the deployed apps without the network."""
