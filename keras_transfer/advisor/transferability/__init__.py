"""How well the features of a backbone suit labels, before anything is trained.

`formulas` has the scores from the literature, `probe` the cross-validated linear classifier,
`scoring` puts them together for features and labels, `table` holds and compares what came out, and
`backbone` gets the features of a backbone from the cache. All but the last is NumPy and
scikit-learn.
"""
