"""How many users two partners share, counted without showing them: what `check --overlap` does."""
