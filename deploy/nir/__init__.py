"""Networks as NIR graphs (the Neuromorphic Intermediate Representation): written, and read."""
