"""What the load generator measured, as numbers, tables, a page."""
