"""ShiftQuant: few-bit formats, their quantisers, products and norms."""
