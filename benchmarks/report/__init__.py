"""What is written about results files: tables, plots, docs/benchmarks.md and README.md's section."""
