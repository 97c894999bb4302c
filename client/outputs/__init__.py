"""Write results: records, tables and counts."""
