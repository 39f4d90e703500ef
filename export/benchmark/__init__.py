"""The parts of `vde-bench`: rows, the process that measures one, the matmul floor, table and picture."""
