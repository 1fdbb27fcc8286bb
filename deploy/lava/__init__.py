"""The Lava backends: the integer network as Lava processes, run by Lava's simulator or by its model classes alone."""
