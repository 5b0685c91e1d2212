"""One cached Prefect task a stage, each thin: effects are here, arithmetic is in `recall`, order in `flows`."""
