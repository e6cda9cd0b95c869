"""Code that a hostile server ships in its bundle."""
