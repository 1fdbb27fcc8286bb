"""Whether an integer network fits a chip: limits as data, rules, a placement on cores, the cost of an inference."""
