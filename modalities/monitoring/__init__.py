"""Looking at a run while it trains: samples and held-out numbers of its EMA weights."""
