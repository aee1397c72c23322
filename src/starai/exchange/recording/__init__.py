"""What a party tells the registry: its records, and its signature under the registry's log."""
