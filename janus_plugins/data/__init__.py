"""Data: samples by mixture, preprocessing in workers, collation."""
