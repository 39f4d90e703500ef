"""What any room may use: processes as one, YAML files, how long parts of a step take."""
