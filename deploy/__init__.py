"""What the integer network meets: the backends that run it, the proof that they agree, the report. Imports no torch."""

BACKENDS = ("reference", "engine", "onnx", "lava-models", "lava")  # who can run it, see deploy/backends.py
