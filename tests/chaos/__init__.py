"""Processes, nodes, drivers and disks that go while a run goes on."""
