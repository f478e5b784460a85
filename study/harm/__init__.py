"""Methods compared at equal harm: gain against drift and forgetting, along the scale of each trained delta."""
