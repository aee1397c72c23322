"""Which sequence runs which tokens in the next step: pure planning over paged memory."""
