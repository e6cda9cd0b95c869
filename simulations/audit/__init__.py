"""`hushclick audit`: the privacy claim of a configuration, attacked before anyone else attacks it."""
