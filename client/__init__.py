"""One data partner: its data, its privacy, its worker."""
