"""A fleet of real devices: its keys and folders, and the Flower commands that run it.

Nothing here talks to the network or imports Flower; `fedkit.flower` does.
"""
