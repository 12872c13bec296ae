"""The study: when does CPPO help? docs/study-protocol.md is its plan, data/results/study.csv what came out."""
