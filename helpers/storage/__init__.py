"""Files that are whole or not there, tables, processes, progress, downloads, a second place."""
