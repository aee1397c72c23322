"""The distributor: takes sealed tasks from gateways and carries each to its end on the nodes."""
