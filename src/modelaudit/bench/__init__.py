"""Trains clean and backdoored models for tests, benchmarks and examples."""
