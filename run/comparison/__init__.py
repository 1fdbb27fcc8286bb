"""Ways to train, compared on one configuration: methods x values of one swept key x seeds, deployed as integers."""
