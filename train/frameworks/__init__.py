"""Networks that were trained in snnTorch, SpikingJelly or Norse, as networks of this project with the same spikes."""
