"""Questions that take many runs: placements, virtual NUMA, sensitivity, churn."""
