"""The paper's figures about purification, and the studies behind them."""
