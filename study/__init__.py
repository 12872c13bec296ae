"""The study: when does CPPO help? study/protocol.md is its plan, data/results/study.csv what came out."""
