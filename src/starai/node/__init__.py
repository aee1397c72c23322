"""The node: a supplier's device. Opens sealed tasks, runs them on an engine, streams the answer."""
