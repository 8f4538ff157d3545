"""Where devices sit on boards: `contract` says what a slot is, each other module is one kind."""
