"""Side-by-side measurements; `benchmarks/README.md` says what was measured, on what, and when."""
