"""What every package may use: errors, numerics, files, text. Imports nothing of ours."""
