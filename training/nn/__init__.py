"""Parts of networks and losses."""
