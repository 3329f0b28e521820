"""Real handwriting: scikit-learn's 1,797 scanned digits, alone and counted."""
