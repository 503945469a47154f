"""Tasks: prompts, reference answers and judgement, one file each."""
