"""Files that are whole or not there, processes, progress, downloads, a second place."""
