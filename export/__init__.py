"""Export of an encoder to other runtimes, with proof that the features stay the same."""
