"""Local training behind one interface; algorithms do not know which engine runs."""
