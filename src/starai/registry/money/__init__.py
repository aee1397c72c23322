"""Money in the database: balances, prices, allotments, earnings."""
