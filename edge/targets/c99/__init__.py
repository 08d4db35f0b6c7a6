"""The target c99: a folder of C sources, and how it is compiled and run here."""
