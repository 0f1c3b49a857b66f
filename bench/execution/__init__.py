"""Running cells: executors, the process of a cell, the monitor of its machine, discovery of devices and backbones."""
