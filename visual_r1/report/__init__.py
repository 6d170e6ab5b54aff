"""What a run looks like: its curves as a figure, its outcome as a table, its examples as a sheet."""
