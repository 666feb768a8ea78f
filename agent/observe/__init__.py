"""Show this agent to people and to monitoring: health, status and metrics. It changes nothing."""
