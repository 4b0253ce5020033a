"""What flows: the app, its records and topics, and the delivery layer beneath the agents."""
