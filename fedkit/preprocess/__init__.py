"""From what a sensor gives to what a model takes, in integers that training and devices share."""
