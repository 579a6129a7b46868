"""A page for a person who looks whether a data set was read as it was meant: figures, histograms, findings."""
