"""A fleet in one box: data for simulated devices, scenarios and the Flower app that runs them."""

from fedkit.core import moved

moved.install()
