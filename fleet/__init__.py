"""What runs beside the fleet and not in every master: the operator's command line, simulation, console."""
