"""`hushclick provision`: from one `consortium.toml` to a folder per role, with keys that are made once."""
