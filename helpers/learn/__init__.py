"""Networks and their training: arrays in, arrays out."""
