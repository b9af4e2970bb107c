"""Published backdoor attacks for tests, benchmarks and examples; no scanner imports them."""
