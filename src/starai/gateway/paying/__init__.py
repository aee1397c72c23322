"""Who may ask, how often, and what it costs: keys, limits, prices and allotments, in memory."""
