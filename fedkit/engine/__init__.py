"""Local training behind one seam; algorithms do not know which engine runs."""
