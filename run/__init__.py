"""A run on disk: its configuration, its folder, and the stages that read and write there."""
