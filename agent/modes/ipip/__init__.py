"""The mode ipip: routes by BGP, packets between nodes inside of IPv4."""
