"""The sensitivity of a run: which layers can do with fewer bits, and the best widths for a budget or an accuracy."""
