"""Many transfers by many workers: plan, claim, make parts, gather; all they share is a folder or an object store."""
