def fit_watch_model(*a): pass
